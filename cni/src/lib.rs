//! orlop-cni plugin, address management and VXLAN overlay.
