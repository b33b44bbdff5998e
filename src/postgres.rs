//! The PostgreSQL side: installation, data directory, configuration files, the postmaster.
