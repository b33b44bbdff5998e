//! Where the servers listen.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits;

/// Where the two servers listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindSpec {
    /// Addresses of the external server.
    pub external: ExternalAddress,
    /// Its port; 0 for any that is free.
    pub external_port: u16,
    /// Port of the internal server, which listens on the loopback addresses only; 0 for any that is free.
    pub internal_port: u16,
}

/// Addresses of the external server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalAddress {
    /// All of them, of both families; IPv4 only on a host without IPv6.
    All,
    /// Only this one.
    Only(IpAddr),
}

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The control plane's.
    External,
    /// Postgres's.
    Internal,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::External => "external",
            Side::Internal => "internal",
        })
    }
}

/// A server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the {side} HTTP server cannot listen on {address}")]
pub struct BindError {
    /// Which server.
    pub side: Side,
    /// Where it should have listened.
    pub address: SocketAddr,
    /// Why it cannot.
    #[source]
    pub source: io::Error,
}

/// Both servers, listening: the kernel accepts connections, nobody answers yet.
#[derive(Debug)]
pub struct Listeners {
    pub(super) external: Bound,
    pub(super) internal: Vec<Bound>,
}

#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
}

impl Listeners {
    /// Binds both servers, or none.
    ///
    /// # Errors
    /// Names the server and the address that is not to be had.
    pub fn bind(spec: &BindSpec) -> Result<Self, BindError> {
        Ok(Listeners { external: bind_external(spec)?, internal: bind_internal(spec.internal_port)? })
    }

    /// Where the external server listens; the port is the real one.
    pub fn external(&self) -> SocketAddr {
        self.external.address
    }

    /// Where the internal server listens: 127.0.0.1, and `[::1]` where there is one, with the same port.
    pub fn internal(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.internal.iter().map(|bound| bound.address)
    }

    /// The internal server's port, which Postgres is told.
    pub fn internal_port(&self) -> u16 {
        self.internal.first().map_or(0, |bound| bound.address.port())
    }
}

fn bind_external(spec: &BindSpec) -> Result<Bound, BindError> {
    let port = spec.external_port;
    let (first, second) = match spec.external {
        ExternalAddress::All => (Ipv6Addr::UNSPECIFIED.into(), Some(Ipv4Addr::UNSPECIFIED.into())),
        ExternalAddress::Only(address) => (address, None),
    };
    match (listen(SocketAddr::new(first, port)), second) {
        (Err((_, error)), Some(second)) if no_such_family(&error) => listen(SocketAddr::new(second, port)),
        (bound, _) => bound,
    }
    .map_err(|(address, source)| BindError { side: Side::External, address, source })
}

fn bind_internal(port: u16) -> Result<Vec<Bound>, BindError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match listen_on_loopback(port) {
            // Somebody else has on one address what is free on the other.
            Err((_, error))
                if port == 0
                    && error.kind() == io::ErrorKind::AddrInUse
                    && tries < limits::HTTP_PORT_TRIES => {}
            Err((address, source)) => return Err(BindError { side: Side::Internal, address, source }),
            Ok(bound) => return Ok(bound),
        }
    }
}

fn listen_on_loopback(port: u16) -> Result<Vec<Bound>, (SocketAddr, io::Error)> {
    let v4 = listen((Ipv4Addr::LOCALHOST, port).into())?;
    let port = v4.address.port();
    match listen((Ipv6Addr::LOCALHOST, port).into()) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err((_, error)) if no_such_family(&error) => Ok(vec![v4]),
        Err(fault) => Err(fault),
    }
}

/// Whether the host has no address of that family: no protocol, or no interface that speaks it.
fn no_such_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

pub(super) fn listen(address: SocketAddr) -> Result<Bound, (SocketAddr, io::Error)> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            // Both families, whatever the system's default says.
            socket.set_only_v6(false)?;
        } else if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // A port whose last connections the kernel still remembers is free.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(limits::HTTP_BACKLOG)?;
        let listener = TcpListener::from(socket);
        Ok(Bound { address: listener.local_addr()?, listener })
    };
    listen().map_err(|error| (address, error))
}
