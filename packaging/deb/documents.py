"""Texts of the package that are made from the project: example configuration, changelog, copyright.

Run by build.sh with the package's own interpreter: `documents.py config`, `documents.py copyright SITE`,
`documents.py changelog FILE VERSION EPOCH`; each prints its text. Reads the project, writes nothing.
"""

from __future__ import annotations

import ast
import email.utils
import inspect
import re
import sys
import textwrap
from importlib.metadata import Distribution, distributions

import msgspec

from spliffd import config

WIDTH = 100
KERNEL_SIDE = "GPL-2.0-only or BSD-2-Clause"
MAINTAINER = "spliff maintainers <maintainers@spliff.example>"


def docstrings(cls: type) -> dict[str, str]:
    """Attribute docstrings of a class: the string that follows an annotated name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            value = text.value if isinstance(text, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = " ".join(value.value.split())
    return found


def example_config() -> str:
    """Every key with its default, commented out, below what its docstring says."""
    lines = [
        "# Configuration of spliffd. Every key is optional; what is commented out shows its default.",
        "# `spliffd config check` tells whether this file is right, `systemctl reload spliffd` applies it.",
    ]
    classes: dict[str, type] = {"": config.Config}
    classes |= {
        field.name: field.type
        for field in msgspec.structs.fields(config.Config)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
    }
    table, about = "", docstrings(config.Config)
    for line in config.show(config.Config()).splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            table = header[1]
            about = docstrings(classes[table])
            lines += _comment(inspect.getdoc(classes[table]) or "")
            lines.append(line)
        elif line:
            lines += _comment(about.get(line.split(" = ")[0], ""))
            lines.append(f"#{line}")
        else:
            lines.append("")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH)]


def changelog(text: str, version: str, epoch: int) -> str:
    """The newest section of CHANGELOG.md (Keep a Changelog) as an entry of a Debian changelog."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    if not sections:
        raise SystemExit("CHANGELOG.md has no section")
    lines = [f"spliff ({version}) bookworm; urgency=medium", ""]
    # An empty "Unreleased" section stands above the version that is being built.
    newest = next((section for section in sections if "\n- " in section), "")
    for item in re.findall(r"^- (.+(?:\n  .+)*)", newest, re.MULTILINE):
        lines += textwrap.wrap(
            " ".join(item.split()),
            78,
            initial_indent="  * ",
            subsequent_indent="    ",
            break_long_words=False,
        )
    lines += ["", f" -- {MAINTAINER}  {email.utils.formatdate(epoch)}"]
    return "\n".join(lines) + "\n"


def licence(package: Distribution) -> str:
    """The licence that a distribution's metadata states, in few words."""
    meta = package.metadata
    stated = meta["License-Expression"] or next(
        (c.rsplit(" :: ", 1)[1] for c in meta.get_all("Classifier", []) if c.startswith("License :: ")), ""
    )
    return stated or (meta["License"] or "see its dist-info folder").splitlines()[0]


def copyright_file(site: str) -> str:
    """Machine-readable debian/copyright, with one paragraph for each library in the environment."""
    parts = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: spliff",
        "Files: *\nCopyright: the spliff authors\nLicense: Apache-2.0",
        f"Files: opt/spliff/lib/*/spliffd/bpf/*\nCopyright: the spliff authors\nLicense: {KERNEL_SIDE}",
    ]
    for package in sorted(distributions(path=[site]), key=lambda d: d.name.lower()):
        if package.name == "spliff":
            continue
        meta = package.metadata
        author = " ".join(
            (meta["Author"] or meta["Author-email"] or f"the authors of {package.name}").split()
        )
        tops = {path.parts[0] for path in package.files or () if path.parts[0] != ".."}
        files = "\n ".join(
            f"opt/spliff/lib/*/{top}*" for top in sorted(tops) if not top.endswith(".dist-info")
        )
        parts.append(
            f"Files: {files}\nCopyright: {author}\nLicense: {licence(package)}\n"
            f"Comment: {package.name} {package.version}, from PyPI, without its tests, headers and symbols."
        )
    parts.append(
        "License: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0."
    )
    parts.append(
        f"License: {KERNEL_SIDE}\n On Debian systems the text of the GPL is in\n"
        " /usr/share/common-licenses/GPL-2, that of the BSD licence in spliffd/bpf/LICENSE, named above."
    )
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> None:
    """Prints the text that was asked for."""
    match arguments:
        case ["config"]:
            print(example_config(), end="")
        case ["copyright", site]:
            print(copyright_file(site), end="")
        case ["changelog", path, version, epoch]:
            with open(path, encoding="utf-8") as file:
                print(changelog(file.read(), version, int(epoch)), end="")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
