"""The server that the clients talk to."""

from tests.clients.running import server as server  # a fixture
