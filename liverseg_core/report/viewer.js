// The viewer: slices of cases that lie packed in the page (see viewer.py), drawn on one canvas.
{
  const root = document.getElementById("viewer"), canvas = root.querySelector("canvas");
  const stage = root.querySelector(".stage"), output = root.querySelector("output");
  const named = name => root.querySelectorAll(`[name=${name}]`);
  const [picker] = named("case"), [slider] = named("slice"), [windows] = named("window");
  const [opacity] = named("opacity"), toggles = Object.fromEntries(
    ["prediction", "reference", "errors"].map(name => [name, named(name)[0]]));
  // Radiological convention: letters are what lies at the left, right, bottom and top.
  const PLANES = {
    axial: { through: 2, across: 0, up: 1, letters: "RLPA" },
    coronal: { through: 1, across: 0, up: 2, letters: "RLIS" },
    sagittal: { through: 0, across: 1, up: 2, letters: "APIS" },
  };
  const CLASSES = ["background", "liver", "tumour"];
  const style = getComputedStyle(root), colour = name => style.getPropertyValue(`--${name}`).trim();
  const rgb = name => [1, 3, 5].map(at => parseInt(colour(name).slice(at, at + 2), 16));
  const FILLS = [null, rgb("liver"), rgb("tumour")], MISSED = rgb("missed"), INVENTED = rgb("invented");
  const blocks = document.querySelectorAll("script.voxels"), opened = new Map();
  let shown = null, plane = PLANES.axial, carried = 0;

  async function unpack(block) {
    const facts = JSON.parse(block.dataset.facts);
    const bytes = Uint8Array.from(atob(block.textContent), letter => letter.charCodeAt(0));
    const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const voxels = new Uint8Array(await new Response(inflated).arrayBuffer()), count = voxels.length / 2;
    for (let at = 1; at < count; at++) voxels[at] += voxels[at - 1];
    const [x, y] = facts.shape;
    return { ...facts, point: [...facts.point], strides: [1, x, x * y],
      grey: voxels.subarray(0, count), labels: voxels.subarray(count) };
  }

  async function open(number) {
    picker.value = number;
    if (!opened.has(number)) opened.set(number, unpack(blocks[number]));
    const volume = await opened.get(number);
    if (Number(picker.value) !== number) return; // another one was chosen meanwhile
    shown = volume;
    for (const name of ["reference", "errors"]) toggles[name].disabled = !shown.referenced;
    draw();
  }

  // The slice as a list of voxels from its top left: columns and rows run against the axes.
  function slice() {
    const { shape, strides, point } = shown, { through, across, up } = plane;
    const width = shape[across], height = shape[up], places = new Uint32Array(width * height);
    for (let row = 0, at = 0; row < height; row++)
      for (let column = 0; column < width; column++, at++)
        places[at] = point[through] * strides[through] + (height - 1 - row) * strides[up]
          + (width - 1 - column) * strides[across];
    return { width, height, places };
  }

  function paint({ width, height, places }) {
    const image = new ImageData(width, height), alpha = opacity.value / 100;
    const [low, high] = windows.value.split(",").map(Number);
    places.forEach((place, at) => {
      const grey = (shown.lowest + shown.step * shown.grey[place] - low) / (high - low) * 255;
      const predicted = shown.labels[place] & 3, reference = shown.labels[place] >> 2;
      const wrong = toggles.errors.checked && shown.referenced && predicted !== reference;
      const over = wrong ? (reference > predicted ? MISSED : INVENTED)
        : toggles.prediction.checked ? FILLS[predicted] : null;
      const usual = Math.min(1, predicted === 2 ? 1.5 * alpha : alpha); // tumours are small
      const share = !over ? 0 : wrong ? Math.max(alpha, .7) : usual, under = Math.min(255, Math.max(0, grey));
      for (let part = 0; part < 3; part++)
        image.data[4 * at + part] = (1 - share) * under + share * (over?.[part] ?? 0);
      image.data[4 * at + 3] = 255;
    });
    return image;
  }

  function outline(context, { width, height, places }, lowest) {
    const inside = (column, row) => column < width && row < height
      && shown.labels[places[row * width + column]] >> 2 >= lowest;
    const across = canvas.width / width, down = canvas.height / height;
    context.beginPath();
    for (let row = 0; row < height; row++)
      for (let column = 0; column < width; column++) {
        const here = inside(column, row), right = (column + 1) * across, bottom = (row + 1) * down;
        const line = (x, y) => { context.moveTo(x, y); context.lineTo(right, bottom); };
        if (here !== inside(column + 1, row)) line(right, row * down);
        if (here !== inside(column, row + 1)) line(column * across, bottom);
      }
    context.strokeStyle = colour(lowest === 2 ? "tumour" : "liver");
    context.lineWidth = 1.75 * devicePixelRatio;
    context.lineCap = "square";
    context.stroke();
  }

  // All planes share one scale, and the stage has room for the largest, so that nothing jumps.
  function resize() {
    const extent = shown.shape.map((voxels, axis) => voxels * shown.spacing[axis]);
    const tallest = Math.max(extent[1], extent[2]);
    const scale = Math.min(stage.clientWidth / Math.max(extent[0], extent[1]),
      Math.max(260, .72 * innerHeight) / tallest);
    const wide = extent[plane.across] * scale, high = extent[plane.up] * scale;
    stage.style.height = `${tallest * scale}px`;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
    canvas.width = Math.round(wide * devicePixelRatio);
    canvas.height = Math.round(high * devicePixelRatio);
  }

  function draw() {
    if (!shown) return;
    resize();
    const cut = slice(), context = canvas.getContext("2d"), { width: wide, height: high } = canvas;
    const small = document.createElement("canvas");
    [small.width, small.height] = [cut.width, cut.height];
    small.getContext("2d").putImageData(paint(cut), 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, wide, high);
    const outlined = toggles.reference.checked && shown.referenced ? [1, 2] : [];
    for (const lowest of outlined) outline(context, cut, lowest);
    mark(context, cut, wide, high);
    say();
  }

  function mark(context, cut, wide, high) {
    const unit = devicePixelRatio, size = 15 * unit, { across, up, letters } = plane;
    const x = (cut.width - .5 - shown.point[across]) * wide / cut.width;
    const y = (cut.height - .5 - shown.point[up]) * high / cut.height;
    context.fillStyle = "#e8e8ec"; // ticks at the edges: where the other planes cut
    for (const end of [0, 1]) context.fillRect(x - unit / 2, end * (high - 9 * unit), unit, 9 * unit);
    for (const end of [0, 1]) context.fillRect(end * (wide - 9 * unit), y - unit / 2, 9 * unit, unit);
    context.font = `600 ${size}px system-ui, sans-serif`;
    [context.textAlign, context.textBaseline] = ["center", "middle"];
    [context.strokeStyle, context.lineWidth] = ["#000", 3 * unit];
    const places = [[size, high / 2], [wide - size, high / 2], [wide / 2, high - size], [wide / 2, size]];
    places.forEach((place, at) => {
      context.strokeText(letters[at], ...place);
      context.fillText(letters[at], ...place);
    });
  }

  function say(point = shown.point) {
    const name = picker.selectedOptions[0].text;
    const kind = Object.keys(PLANES).find(key => PLANES[key] === plane);
    const count = shown.shape[plane.through], at = shown.point[plane.through];
    const where = `${kind} slice ${at + 1} of ${count}`;
    slider.max = count - 1;
    slider.value = at;
    slider.setAttribute("aria-valuetext", where);
    canvas.setAttribute("aria-label", `${name}, ${where}`);
    const place = point.reduce((sum, index, axis) => sum + index * shown.strides[axis], 0);
    const labels = shown.labels[place], hu = roughly(shown.grey[place]);
    const reference = shown.referenced ? `, reference ${CLASSES[labels >> 2]}` : "";
    output.textContent = `${where} · ${hu} HU here, predicted ${CLASSES[labels & 3]}${reference}`;
  }

  // The first and the last grey stand for all beyond them, the others for a step, or a mean of voxels.
  function roughly(grey) {
    const hu = String(shown.lowest + shown.step * grey).replace("-", "−");
    return `${grey === 0 ? "≤" : grey === shown.top ? "≥" : "≈"} ${hu}`;
  }

  // Whether there was a slice to go to.
  function step(by) {
    if (!shown) return false;
    const { through } = plane, last = shown.shape[through] - 1, before = shown.point[through];
    shown.point[through] = Math.min(last, Math.max(0, before + by));
    if (shown.point[through] !== before) draw();
    return shown.point[through] !== before;
  }

  function choose(name) {
    plane = PLANES[name];
    for (const radio of named("plane")) radio.checked = radio.value === name;
    draw();
  }

  // The voxel under a pointer.
  function under(event) {
    const box = canvas.getBoundingClientRect(), point = [...shown.point];
    const share = {
      [plane.across]: (event.clientX - box.left) / box.width,
      [plane.up]: (event.clientY - box.top) / box.height,
    };
    for (const axis of [plane.across, plane.up]) {
      const from = shown.shape[axis] - 1 - Math.floor(share[axis] * shown.shape[axis]);
      point[axis] = Math.min(shown.shape[axis] - 1, Math.max(0, from));
    }
    return point;
  }

  const KEYS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10,
    Home: -1e6, End: 1e6 };
  const TOGGLES = { p: "prediction", r: "reference", e: "errors" };
  canvas.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in KEYS) step(KEYS[event.key]);
    else if ("123".includes(event.key)) choose(Object.keys(PLANES)[event.key - 1]);
    else if (event.key in TOGGLES) toggles[TOGGLES[event.key]].click();
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("wheel", event => {
    if (event.ctrlKey) return; // the browser's zoom
    carried += event.deltaMode ? event.deltaY * 40 : event.deltaY;
    const slices = Math.trunc(carried / 40);
    carried -= slices * 40;
    // Past the last slice the page scrolls again.
    if (!slices || step(-slices)) event.preventDefault();
  }, { passive: false });

  let grip = null;
  canvas.addEventListener("pointerdown", event => {
    if (!shown) return;
    grip = { x: event.clientX, slice: shown.point[plane.through], moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", event => {
    if (!shown) return;
    if (!grip) return say(under(event));
    const slices = Math.round((event.clientX - grip.x) / 4);
    if (slices) grip.moved = true;
    if (grip.moved) step(grip.slice + slices - shown.point[plane.through]);
  });
  canvas.addEventListener("pointerup", event => {
    if (grip && !grip.moved) {
      shown.point = under(event);
      draw();
    }
    grip = null;
  });
  canvas.addEventListener("pointercancel", () => { grip = null; });
  canvas.addEventListener("pointerleave", () => { if (shown) say(); });

  slider.addEventListener("input", () => step(slider.value - shown.point[plane.through]));
  picker.addEventListener("change", () => open(Number(picker.value)).catch(fail));
  for (const radio of named("plane")) radio.addEventListener("change", () => choose(radio.value));
  for (const input of [windows, opacity, ...Object.values(toggles)]) input.addEventListener("input", draw);
  for (const link of document.querySelectorAll("[data-view]"))
    link.addEventListener("click", () => open(Number(link.dataset.view)).catch(fail));
  new ResizeObserver(draw).observe(stage);

  function fail(error) {
    output.textContent = `This browser cannot show the cases (${error.message}). Browsers since 2023 can.`;
  }
  open(0).catch(fail);
}
