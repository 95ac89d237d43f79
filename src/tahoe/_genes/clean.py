"""Gene names as an annotation has them, without what text files and pipelines leave around them."""

from __future__ import annotations

import ast
import re
import unicodedata
from typing import Any

import pandas as pd

# Most names, also unknown ones, have nothing around them.
ORDINARY = re.compile(r"(?!X\.U\.FEFF\.)[A-Za-z0-9][A-Za-z0-9.-]*")
# A byte-order mark that was read in another encoding, as Python and as R show it.
BROKEN_MARK = re.compile(r"(?:ï»¿|ï\.\.|X\.U\.FEFF\.)")
BROKEN_BLANK = "Â\u00a0"
DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")
QUOTES = "'\"`\u2018\u2019\u201c\u201d,; "
BYTES_REPR = re.compile(r"['\"]*(b(['\"]).*\2)['\"]*")
# CD3D|NM_000732.4|Reference_end (BD Rhapsody), also with the separator that R makes of the bar.
TRANSCRIPT = re.compile(r"[|._:]+(?:[NX][MR]_\d|ENST\d{11}).*")
# What may stand in front of the bar instead of the symbol: NCBI's number, or a transcript.
NUMBER = re.compile(r" *(?:\d+|[NX][MR]_\d[\d.]*|ENST\d{11}[\d.]*) *")
# CD3D (915), as the files of DepMap have it
NUMBER_BEHIND = re.compile(r" +\(\d+\)$")
ENSEMBL_GENE = re.compile(r"ENS(?:MUS)?G\d{11}", re.IGNORECASE)
# BD Rhapsody calls an antibody CD4:SK3|CD4|AHS0032|pAbO.
ANTIBODY = re.compile(r".*\| *pAbO", re.IGNORECASE)


def as_text(value: Any) -> str:
    """A name as a string, "" where it is missing."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def clean_name(name: str) -> str:
    r"""The name inside of what is around it: ``CD3D`` of ``CD3D\r``, ``b'CD3D'``, ``CD3D|915`` and ``CD3D (915)``."""
    if ORDINARY.fullmatch(name):
        return name
    text = BROKEN_MARK.sub("", name, count=1) if BROKEN_MARK.match(name) else name
    # full-width letters and no-break blanks become ordinary ones
    text = unicodedata.normalize("NFKC", text.replace(BROKEN_BLANK, " ")).translate(DASHES)
    text = "".join(map(_visible, text)).strip()
    as_bytes = BYTES_REPR.fullmatch(text)
    if as_bytes:
        return clean_name(_from_repr(as_bytes[1]))
    text = text.strip(QUOTES)
    return text if ENSEMBL_GENE.search(text) else _symbol(text)


def _visible(sign: str) -> str:
    """Nothing for a sign that is not seen, as a zero-width space, and a blank for an end of a line."""
    kind = unicodedata.category(sign)
    return "" if kind == "Cf" else " " if kind == "Cc" else sign


def _from_repr(text: str) -> str:
    """``CD3D`` of the text ``b'CD3D'``."""
    try:
        return as_text(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text[2:-1]


def _symbol(text: str) -> str:
    """The symbol in front of a transcript or of numbers; an antibody with the name of a gene stays what it is."""
    if ANTIBODY.fullmatch(text):
        return text
    first, bar, others = TRANSCRIPT.sub("", text).partition("|")
    if bar and NUMBER.fullmatch(first):
        first = others.partition("|")[0]
    return NUMBER_BEHIND.sub("", first).strip(QUOTES)
