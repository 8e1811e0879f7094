//! Every area on a subject of its own: ours, or `SUBJECT=containerd`. `SPEC=text` runs only the specs whose name contains it.

use orlop_conformance_cri::spec::run_area;
use orlop_conformance_cri::specs;

macro_rules! areas {
    ($($area:ident: $at_once:expr),* $(,)?) => {$(
        #[test]
        fn $area() {
            run_area(stringify!($area), specs::$area::SPECS, $at_once, env!("CARGO_BIN_EXE_cri-subject").into());
        }
    )*};
}

areas! {
    runtime_info: 4,
    pods: 4,
    networking: 4,
    containers: 6,
    exec: 6,
    logs: 6,
    idempotence: 4,
    mounts: 4,
    image_volumes: 4,
    users: 6,
    security: 6,
    namespaces: 6,
    resources: 6,
    stats: 6,
    events: 4,
    images: 1,
    streaming_lists: 6,
    streaming: 6,
}
