"""HTTP: TLS, passwords, sockets, and the application that answers. The only place that knows it."""
