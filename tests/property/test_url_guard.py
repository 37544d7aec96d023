import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tilewise.errors import ImageFetchError
from tilewise.inputs.media.address_guard import is_global, parse_url
from tilewise.inputs.media.fetch import fetch
from tilewise.inputs.media.policy import ImagePolicy

CLOSED = [
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
]  # fmt: skip
CLOSED_ADDRESSES = st.sampled_from(CLOSED).flatmap(
    lambda network: st.integers(int(network[0]), int(network[-1])).map(ipaddress.IPv4Address)
)
HALF_SURROGATES = st.integers(0xD800, 0xDFFF).map(chr)
ANY_TEXT = st.text(st.characters() | HALF_SURROGATES, max_size=60)


def in_ipv6(address: ipaddress.IPv4Address) -> list[str]:
    number = int(address)
    forms = (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80, number)
    return [str(ipaddress.IPv6Address(form)) for form in forms]


@given(CLOSED_ADDRESSES)
def test_no_form_of_a_closed_address_is_global(address):
    assert not is_global(str(address))
    for form in in_ipv6(address):
        assert not is_global(form)


@given(st.ip_addresses(v=4))
def test_ipv4_is_global_exactly_outside_the_registrys_closed_networks(address):
    is_closed = any(address in network for network in CLOSED) or str(address) == "168.63.129.16"
    assert is_global(str(address)) == (not is_closed)


@given(st.ip_addresses(v=6))
def test_global_ipv6_lies_in_global_unicast_or_wraps_a_global_ipv4(address):
    if is_global(str(address)):
        wraps = address.ipv4_mapped is not None or address in ipaddress.IPv6Network("64:ff9b::/96")
        assert wraps or address in ipaddress.IPv6Network("2000::/3")


@given(CLOSED_ADDRESSES, ANY_TEXT, st.integers(0, 5), st.lists(st.ip_addresses(), max_size=3))
def test_a_host_with_a_closed_address_is_never_connected(address, path, place, others):
    answers = [str(other) for other in others]
    answers.insert(place, str(address))
    with pytest.raises(ImageFetchError):
        fetch("http://any.example/" + path, ImagePolicy(), lambda host, port: answers)


@given(ANY_TEXT)
def test_any_text_parses_to_one_normal_form_or_is_refused(text):
    for url in (text, "http://" + text, "https://a/" + text):
        try:
            target = parse_url(url)
        except ImageFetchError:
            continue
        assert parse_url(target.url) == target
        assert target.url.isascii()
        assert urlsplit(target.url).hostname == target.host
        assert not set(target.path) & set(" \r\n\t\\#")


@given(st.integers(0, 2**32 - 1))
def test_what_the_parser_calls_the_host_is_what_gets_resolved(number):
    assume(number)
    seen = []

    def note(host: str, port: int) -> list[str]:
        seen.append((host, port))
        return []

    for host in (str(number), hex(number), str(ipaddress.IPv4Address(number))):
        with pytest.raises(ImageFetchError):
            fetch(f"http://{host}:81/", ImagePolicy(), note)
        assert seen[-1] == (host, 81)
