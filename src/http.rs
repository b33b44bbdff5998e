//! The external and the internal HTTP server.
