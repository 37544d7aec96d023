import pytest

from tests.conformance import PAGES, ROOT, write_page


@pytest.mark.parametrize("path", PAGES)
def test_the_conformance_page_is_what_the_code_says(path):
    page = (ROOT / path).read_text(encoding="utf-8")
    assert page == write_page(PAGES[path]), "write it anew: python -m tests.conformance"
