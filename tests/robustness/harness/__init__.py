"""The service processes under test, and the clients that try them."""
