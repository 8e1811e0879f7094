//! Pods: one worker per pod UID, told what is wanted and woken when something happened.

pub(crate) mod admission;
pub(crate) mod dispatch;
pub(crate) mod images;
pub(crate) mod model;
pub(crate) mod observe;
pub(crate) mod operations;
mod patch;
pub(crate) mod plan;
pub(crate) mod pleg;
mod report;
mod start;
pub(crate) mod status;
mod stop;
mod sysctls;
pub(crate) mod worker;

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod status_tests;
