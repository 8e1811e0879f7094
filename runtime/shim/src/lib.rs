//! `orlop shim`: one per pod, single-threaded, parent of the pod's containers.

pub mod protocol;
