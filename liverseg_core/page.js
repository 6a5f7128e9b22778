// Tables sort by a click on a column's head; cells without a value come last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  for (const [at, head] of heads.entries()) {
    head.querySelector("button").onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[at]?.dataset.key ?? "";
      const compare = head.classList.contains("number") ? (a, b) => a - b
        : (a, b) => a.localeCompare(b, "en", { numeric: true });
      const sign = up ? 1 : -1;
      const order = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 : sign * compare(key(a), key(b));
      body.append(...[...body.rows].sort(order));
    };
  }
}
