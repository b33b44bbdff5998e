//! Roles and databases: what exists is read, what differs is planned, the plan is applied.
