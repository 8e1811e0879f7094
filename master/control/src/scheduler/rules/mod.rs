//! Where a pod may and should run: pure.

mod affinity;
mod filter;
mod model;
mod plan;
mod score;
mod spread;

pub(crate) use model::Cluster;
pub(crate) use plan::{Verdict, plan};
