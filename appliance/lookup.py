"""One question to a name server, by dnspython: a program of its own (`python -m appliance.lookup`), so that the agent
need not have the library in memory. Reads {"name", "type", "server", "tcp"} as JSON, prints the answer as dig would."""

from __future__ import annotations

import json
import sys

SECONDS = 5.0


def main() -> int:
    import dns.exception
    import dns.message
    import dns.query
    import dns.reversename

    asked = json.load(sys.stdin)
    name = asked["name"]
    try:
        if asked["type"] == "PTR" and name.replace(".", "").isdigit():
            name = dns.reversename.from_address(name)
        query = dns.message.make_query(name, asked["type"])
        ask = dns.query.tcp if asked["tcp"] else dns.query.udp
        answer = ask(query, asked["server"], timeout=SECONDS)
    except dns.exception.Timeout:
        print(f"{asked['server']} did not answer within {SECONDS:g} s")
        return 1
    except (dns.exception.DNSException, OSError) as error:
        print(f"{asked['server']}: {error or type(error).__name__}")
        return 1
    print(f"{answer}\n;; {asked['server']} answered in {answer.time * 1000:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
