//! The program: parses, builds the runtime, runs the node, ends with its exit code.

fn main() {}
