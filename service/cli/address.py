"""The address that the client's commands ask: that of the service on this machine."""

from collections.abc import Mapping
from ipaddress import ip_address

from service.settings import PREFIX

DEFAULT_PORT = "8000"


def default_url(environment: Mapping[str, str]) -> str:
    """The address of a service that is started with the same environment."""
    values = {name.upper(): value for name, value in environment.items()}
    host = values.get(f"{PREFIX}HOST") or "127.0.0.1"
    port = values.get(f"{PREFIX}PORT") or DEFAULT_PORT
    if port == "0":  # the service picks one
        port = DEFAULT_PORT
    try:
        address = ip_address(host)
    except ValueError:  # a name
        pass
    else:
        if address.is_unspecified:  # the service listens on all addresses
            host = "127.0.0.1" if address.version == 4 else "::1"
        if address.version == 6:
            host = f"[{host}]"
    scheme = "https" if values.get(f"{PREFIX}TLS_CERTIFICATE") else "http"
    return f"{scheme}://{host}:{port}"
