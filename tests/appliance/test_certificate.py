"""When a certificate ends: as `openssl x509 -enddate` said of these two, made by openssl 3.0."""

from __future__ import annotations

import pytest

from appliance.certificate import CertificateError, ends

# notAfter=Jan  2 13:23:36 2028 GMT, a UTCTime
SHORT = """-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIUItxwkwqfP9WEtDKKaWNMejTjjEowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYS5leGFtcGxlMB4XDTI2MTEyODEzMjMzNloXDTI4MDEwMjEz
MjMzNlowFDESMBAGA1UEAwwJYS5leGFtcGxlMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEHZRqeodobl0haE+QrHkOmqDqFMV4WKr+klaQkJ1rX+dNx5SaMWzxLkK7
OHTNhZj0UwM2yBTkvAxDv192SFZdJ6NTMFEwHQYDVR0OBBYEFKggT6mxp5kCRfD5
w7mUge+2boMzMB8GA1UdIwQYMBaAFKggT6mxp5kCRfD5w7mUge+2boMzMA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAJHSoUN8eYYeGFdFfj2orEQe
4yAYy8rtKKOzphvbhCz9AiAiLrkLEXMsMbCia2t5BHMKn0+w6MOz6wl1vEUZMUiC
Vg==
-----END CERTIFICATE-----
"""
# notAfter=Nov  4 13:23:36 2126 GMT, a GeneralizedTime
LONG = """-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUOdPJn/bzNHAvACTI9tRu5lQFdx4wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYi5leGFtcGxlMCAXDTI2MTEyODEzMjMzNloYDzIxMjYxMTA0
MTMyMzM2WjAUMRIwEAYDVQQDDAliLmV4YW1wbGUwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARybVXoUsTLh7rBHABqoh6KwaolwHLU8EJl+oZG/17QXLjWfpI0Zo3d
baTNhoGcPUKNI92s1rfA6zGnb3KM90qBo1MwUTAdBgNVHQ4EFgQU1V+TPFh4FM/6
CEPrtC6YmHavx+4wHwYDVR0jBBgwFoAU1V+TPFh4FM/6CEPrtC6YmHavx+4wDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiAOalEmH/QTdkMsQ6dMTAsa
oMk2r5WqYAVAqU5UvjazKwIhAKeuu7ovg+58rGZ5EV96X5MBz4HAcyFj/ojeg+/R
yJ0o
-----END CERTIFICATE-----
"""
SHORT_ENDS, LONG_ENDS = 1830432216.0, 4949472216.0


def test_both_forms_of_time() -> None:
    assert ends(SHORT) == SHORT_ENDS
    assert ends(LONG) == LONG_ENDS


def test_the_earliest_of_a_chain_counts() -> None:
    assert ends(LONG + "some key\n" + SHORT) == SHORT_ENDS


def test_no_certificate() -> None:
    assert ends("frontend web\n  bind :443\n") is None


@pytest.mark.parametrize("at", range(0, 500, 25))
def test_what_is_damaged_is_refused_and_nothing_else_happens(at: int) -> None:
    lines = SHORT.splitlines()
    body = "".join(lines[1:-1])
    cut = "\n".join((lines[0], body[:at] or "A", lines[-1]))
    with pytest.raises(CertificateError):
        ends(cut)
