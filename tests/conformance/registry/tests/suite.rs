//! Every section on a registry of its own: ours, or `SUBJECT=docker-registry`. `SPEC=text` runs only the specs whose name contains it.

use orlop_conformance_registry::spec::run_section;
use orlop_conformance_registry::specs;

macro_rules! sections {
    ($($section:ident),* $(,)?) => {$(
        #[test]
        fn $section() {
            run_section(stringify!($section), specs::$section::SPECS, env!("CARGO_BIN_EXE_registry-subject").as_ref());
        }
    )*};
}

sections! { pull, uploads, mounts, ranges, manifests, tags, referrers, deletes, errors }
