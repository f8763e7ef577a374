"""Where libcrypto notes errors: OpenSSL 3's function, the older ones' of another shape, none elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from spliffd.targets import errors, recognise
from spliffd.targets.elf import Image
from tests.unit.targets.conftest import library

NOTE = [b"\x48\x81\xec\xd8\x00\x00\x00", b"\xc3"]
"""sub $0xd8, %rsp; ret"""


@pytest.mark.parametrize(("name", "flavour"), [("ERR_vset_error", "none"), ("ERR_put_error", "pointer")])
def test_the_function_that_notes_errors(opened, name: str, flavour: str):
    data, at = library({name: NOTE, "ERR_get_error": NOTE})
    with Image(opened(data)) as image:
        found = recognise.inspect(image, relocate=True)
        (site,) = found.sites
        assert (found.state, found.library) == ("attach", "openssl")
        assert (site.symbol, site.op, site.flavour, site.return_probe) == (name, "error", flavour, False)
        assert site.offset == image.offset_of(at[name])


def test_other_files_have_none(opened):
    data, _ = library({"ERR_get_error": NOTE})
    with Image(opened(data)) as image:
        assert errors.sites(image, relocate=True) == []
        assert recognise.inspect(image, relocate=True).state == "skipped"


def test_a_hidden_library_is_still_refused(opened):
    data, _ = library({"ERR_put_error": NOTE}, text=b"\0external/boringssl/ssl/ssl_lib.cc\0")
    with Image(opened(data)) as image:
        assert recognise.inspect(image, relocate=True).state == "refused"


def test_the_hosts_libcrypto():
    path = next(Path("/usr/lib").glob("*/libcrypto.so.3"))
    with path.open("rb") as file, Image(file.fileno()) as image:
        (site,) = recognise.inspect(image, relocate=True).sites
        assert (site.symbol, site.op) == ("ERR_vset_error", "error")
