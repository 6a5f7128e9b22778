"""English for numbers."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """How many there are of something.

    Example:
        >>> counted(1, "case"), counted(2, "case"), counted(0, "series", "series")
        ('1 case', '2 cases', '0 series')
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
