//! Fetching this compute's spec from a control plane or from the config file.
