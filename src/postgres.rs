//! The PostgreSQL side: installation, data directory, configuration files, the postmaster.

pub mod conf;
pub mod hba;
