"""The drawing of the house, docs/house.svg, from the imports: a box for each wing, an arrow from whoever imports to what is
imported, dashed where that happens inside a function. An arrow that follows from two others is left out."""

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from itertools import pairwise

from import_graph import WORKSHOPS, between_wings, project, project_imports

Edges = set[tuple[str, str]]
WIDE, HIGH, ROW, COLUMN = 112, 28, 52, 126  # of a box, and from one to the next
SWEEPS = 40


def layers(nodes: set[str], edges: Edges) -> dict[str, int]:
    """Node -> its layer: 0 imports nothing, each other stands above all that it imports."""

    @cache
    def layer(node: str) -> int:
        return 1 + max((layer(imported) for importer, imported in edges if importer == node), default=-1)

    return {node: layer(node) for node in nodes}


def reduced(edges: Edges) -> Edges:
    """The edges that do not follow from others."""

    @cache
    def below(node: str) -> frozenset[str]:
        found = {imported for importer, imported in edges if importer == node}
        return frozenset(found).union(*(below(each) for each in found))

    return {(a, b) for a, b in edges if not any(b in below(other) for first, other in edges if first == a and other != b)}


def with_turns(edges: Edges, layer: dict[str, int]) -> dict[tuple[str, str], list[str]]:
    """Edge -> the nodes that it passes, from its importer down: a turn in every layer between, which `layer` learns."""
    paths = {}
    for importer, imported in sorted(edges):
        turns = [f"{importer}>{imported}>{height}" for height in range(layer[importer] - 1, layer[imported], -1)]
        layer.update((turn, layer[importer] - 1 - number) for number, turn in enumerate(turns))
        paths[importer, imported] = [importer, *turns, imported]
    return paths


def places(layer: Mapping[str, int], paths: Sequence[Sequence[str]]) -> dict[str, float]:
    """Node or turn -> its column: each as near to the middle of its neighbours as those beside it in its layer allow."""
    rows = [sorted(node for node in layer if layer[node] == height) for height in range(max(layer.values()) + 1)]
    beside: dict[str, list[str]] = {node: [] for node in layer}
    for path in paths:
        for a, b in pairwise(path):
            beside[a].append(b)
            beside[b].append(a)
    column = {node: float(number) for row in rows for number, node in enumerate(row)}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {node: sum(column[each] for each in beside[node]) / len(beside[node]) for node in row}
            row.sort(key=lambda node, wanted=wanted: (wanted[node], node))  # type: ignore[misc]
            found, edge = [], -1e9
            for node in row:
                half = 0.15 if ">" in node else 0.5
                found.append(max(wanted[node], edge + half))
                edge = found[-1] + half
            shift = sum(wanted[node] - at for node, at in zip(row, found, strict=True)) / len(row)
            column |= {node: at + shift for node, at in zip(row, found, strict=True)}
    return column


def drawing(edges: Edges, late: Edges) -> str:
    """The SVG of these imports between wings; late: those inside functions alone."""
    layer = layers({node for edge in edges | late for node in edge}, edges | late)
    wings = sorted(layer)
    paths = with_turns(reduced(edges | late), layer)
    column = places(layer, list(paths.values()))
    left, top = min(column.values()), max(layer.values())

    def at(node: str) -> tuple[float, float]:
        return (column[node] - left) * COLUMN + WIDE / 2 + 10, (top - layer[node]) * ROW + HIGH / 2 + 10

    width, height = (max(column.values()) - left) * COLUMN + WIDE + 20, top * ROW + HIGH + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="14">',
        "<title>Who imports whom</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
    ]
    for edge, path in paths.items():
        points = [at(node) for node in path]
        points[0], points[-1] = (points[0][0], points[0][1] + HIGH / 2), (points[-1][0], points[-1][1] - HIGH / 2)
        dashed = "" if edge in edges else ' stroke-dasharray="4 4"'
        shape = "L".join(f"{x:.0f} {y:.0f}" for x, y in points)
        lines.append(f'<path d="M{shape}" fill="none" stroke="#555"{dashed} marker-end="url(#tip)"/>')
    for node in wings:
        x, y = at(node)
        colour = "#fde7c8" if node in WORKSHOPS else "#d5ead8" if node == "cli" else "#dbe7f6"
        lines.append(
            f'<rect x="{x - WIDE / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{WIDE}" height="{HIGH}" rx="5" fill="{colour}" '
            'stroke="#555"/>'
        )
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{escape(node)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def house() -> str:
    """The drawing of this project as it stands."""
    imports = [each for each in project_imports(project()) if not {each.importer, each.imported} & {"mmada_lite.__main__"}]
    edges = between_wings(each for each in imports if not each.late)
    return drawing(edges, between_wings(imports) - edges)
