"""Show the Returns section of a docstring as it is written.

Napoleon takes its first line for a type. Here, as in scanpy, the section is prose followed by a list of the slots that
a function writes: a definition list with the type behind a colon, which reStructuredText renders by itself.
"""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring


def _returns(self: NumpyDocstring, section: str) -> list[str]:
    del section
    return self._format_block(":returns: ", self._dedent(self._consume_to_next_section()))


def _raises(self: NumpyDocstring, section: str) -> list[str]:
    """Allow several kinds of error above one description, separated by commas."""
    del section
    lines = []
    for _, kinds, description in self._consume_fields(parse_type=False, prefer_type=True):
        names = ", ".join(f":py:exc:`~{kind.strip()}`" for kind in kinds.split(","))
        lines += [names, *self._indent(description, 4), ""]
    return self._format_block(":raises: ", lines)


def _type_beside_returns(app: Sphinx, domain: str, objtype: str, content: addnodes.desc_content) -> None:
    """Put the return type, which autodoc adds at the end, behind what it is the type of."""
    del app, domain, objtype
    for fields in content.findall(nodes.field_list):
        places = {field[0].astext(): field for field in fields}
        if "rtype" in places and "returns" in places:
            fields.remove(places["rtype"])
            fields.insert(fields.index(places["returns"]) + 1, places["rtype"])


def setup(app: Sphinx) -> dict[str, bool]:
    NumpyDocstring._parse_returns_section = _returns
    NumpyDocstring._parse_raises_section = _raises
    app.connect("object-description-transform", _type_beside_returns, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
