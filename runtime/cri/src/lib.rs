//! orlop runtime: the CRI server.
