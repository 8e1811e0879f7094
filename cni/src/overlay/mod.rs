pub struct OverlayConfig; pub fn cleanup(){} pub fn start_overlay(){}
