//! Command line, environment and exit codes.
