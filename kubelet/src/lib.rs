//! The node agent: pod lifecycle, volumes, probes, status, :10250.
