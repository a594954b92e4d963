"""The HTTP server of serve: TLS, passwords, sockets and the WSGI application."""
