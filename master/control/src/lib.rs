//! Scheduler and controllers.
