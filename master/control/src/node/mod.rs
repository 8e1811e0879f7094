//! Node lifecycle: health by lease, taints by condition, eviction by taint, pod ranges.

pub(crate) mod eviction;
mod health;
mod ranges;

use crate::Context;
use crate::watch::Routes;

/// Starts the three controllers.
pub(crate) fn start(context: &Context, routes: &mut Routes) {
    health::start(context, routes);
    eviction::start(context, routes);
    if context.config.allocate_node_cidrs {
        ranges::start(context, routes);
    }
}
