//! The only unsafe code of the workspace: system calls that rustix and nix lack.
