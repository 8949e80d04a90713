"""How well colours stand out."""


def luminance(color):
    shares = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, two):
    """As WCAG 2 has it."""
    low, high = sorted(map(luminance, (one, two)))
    return (high + 0.05) / (low + 0.05)
