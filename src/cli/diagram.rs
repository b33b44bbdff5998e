//! `compute_ctl diagram`.
