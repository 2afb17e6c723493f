//! The protocols that Ray speaks on its ports.

use rayguard_core::request::catalogue::Surface;

/// What is spoken with Ray.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// HTTP/1.1: the dashboard, Serve.
    #[default]
    Http1,
    /// HTTP/2 without TLS, known beforehand: gRPC.
    Http2,
}

impl Protocol {
    /// What Ray speaks on the port behind this kind of listener.
    pub fn of(surface: Surface) -> Protocol {
        match surface {
            Surface::Dashboard | Surface::Serve => Protocol::Http1,
            Surface::RayClient => Protocol::Http2,
        }
    }
}
