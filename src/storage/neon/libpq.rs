//! A pageserver over libpq: the connection, simple queries, and COPY as the answer to one.
//!
//! Pageservers speak the simple query protocol only. `tokio-postgres` has COPY for the extended one alone (it
//! prepares and binds a statement first), takes the answer of a simple query for an error when it is a COPY, and hands out no
//! raw connection. So this is a loop of its own over the frames of `postgres-protocol`, the crate below
//! `tokio-postgres`, which in turn reads the connection strings. It does the little that a pageserver
//! needs: no TLS, no password but one in clear text, one query after the other.
//!
//! A session that is dropped closes its connection, and with it ends whatever the server was doing.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::error::{Fault, PageserverError, shortened};
use crate::limits;
use crate::secret::Secret;
use crate::spec::resolve::{Mode, Pageserver};

/// By what name a pageserver's log knows us.
const APPLICATION: &str = "compute_ctl";

/// Whom a connection string without a user means. Nobody looks: the token says who one is.
const USER: &str = "no_user";

/// A connection that is let in and waits for a query.
#[derive(Debug)]
pub struct Session {
    server: String,
    stream: TcpStream,
    input: BytesMut,
}

/// One row of an answer: the columns as text, `None` for NULL.
pub type Row = Vec<Option<String>>;

impl Session {
    /// Connects, and is let in.
    ///
    /// `token` takes the place of a password in the connection string. With `mode` the session says who it is and
    /// what it is for, as base backups do and leases do not.
    ///
    /// # Errors
    /// [`PageserverError`]; [`Fault::Silent`] when all of it takes longer than `within`.
    pub async fn open(
        server: &Pageserver,
        token: Option<&Secret>,
        mode: Option<Mode>,
        within: Duration,
    ) -> Result<Self, PageserverError> {
        let address = Address::of(server);
        let name = address.as_ref().map_or_else(|_| unnamed(server), |address| address.name(server));
        let failed = PageserverError::of(&name);
        let address = address.map_err(&failed)?;
        let opening = async {
            let stream = address.connect().await?;
            let mut session = Self { server: name.clone(), stream, input: BytesMut::new() };
            session.log_in(&address.config, token, mode).await?;
            Ok(session)
        };
        match timeout(within, opening).await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(failed(Fault::Silent { during: "before it let us in", after: within })),
        }
    }

    /// What the server is called in errors.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Sends a query whose answer is rows, few and small ones, and reads all of it.
    ///
    /// # Errors
    /// [`PageserverError`]; [`Fault::Silent`] when it takes longer than `within`.
    pub async fn rows(&mut self, query: &str, within: Duration) -> Result<Vec<Row>, PageserverError> {
        let answer = timeout(within, self.all_rows(query)).await;
        let answer =
            answer.unwrap_or(Err(Fault::Silent { during: "before it had answered a query", after: within }));
        answer.map_err(PageserverError::of(&self.server))
    }

    /// Sends a query whose answer is a COPY, and waits until it begins.
    ///
    /// # Errors
    /// [`PageserverError`]; [`Fault::Silent`] when it does not begin `within` that time.
    pub async fn copy_out(mut self, query: &str, within: Duration) -> Result<CopyOut, PageserverError> {
        let begin = async {
            self.send(|buffer| frontend::query(query, buffer)).await?;
            match self.receive("before it answered").await? {
                Message::CopyOutResponse(_) => Ok(()),
                _ => Err(Fault::Protocol("no COPY begins where one was asked for")),
            }
        };
        let begun = timeout(within, begin).await;
        let begun = begun.unwrap_or(Err(Fault::Silent { during: "before it sent anything", after: within }));
        begun.map_err(PageserverError::of(&self.server))?;
        Ok(CopyOut { session: self, done: false })
    }

    async fn log_in(
        &mut self,
        config: &Config,
        token: Option<&Secret>,
        mode: Option<Mode>,
    ) -> Result<(), Fault> {
        let options = mode.map(|mode| format!("-c neon.compute_mode={mode}"));
        let mut parameters = vec![("client_encoding", "UTF8"), ("user", config.get_user().unwrap_or(USER))];
        parameters.extend(config.get_dbname().map(|database| ("database", database)));
        if let Some(options) = &options {
            parameters.extend([("options", options.as_str()), ("application_name", APPLICATION)]);
        }
        self.send(|buffer| frontend::startup_message(parameters, buffer)).await?;
        let when = "before it let us in";
        match self.receive(when).await? {
            Message::AuthenticationOk => {}
            Message::AuthenticationCleartextPassword => {
                let token = token.map(|token| token.reveal().as_bytes());
                let password = token.or(config.get_password()).ok_or(Fault::NoToken)?;
                self.send(|buffer| frontend::password_message(password, buffer)).await?;
                match self.receive(when).await? {
                    Message::AuthenticationOk => {}
                    _ => return Err(Fault::Protocol("no answer to the token")),
                }
            }
            _ => return Err(Fault::Authentication),
        }
        loop {
            match self.receive(when).await? {
                Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                _ => return Err(Fault::Protocol("it does not say that it is ready for a query")),
            }
        }
    }

    async fn all_rows(&mut self, query: &str) -> Result<Vec<Row>, Fault> {
        self.send(|buffer| frontend::query(query, buffer)).await?;
        let mut rows = Vec::new();
        loop {
            match self.receive("before it had answered").await? {
                Message::RowDescription(_) | Message::CommandComplete(_) => {}
                Message::DataRow(_) if rows.len() == limits::PAGESERVER_ROWS => {
                    return Err(Fault::Protocol("too many rows"));
                }
                Message::DataRow(body) => rows.push(row(&body)?),
                Message::ReadyForQuery(_) => return Ok(rows),
                _ => return Err(Fault::Protocol("an answer that is not rows")),
            }
        }
    }

    async fn send(
        &mut self,
        message: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), Fault> {
        let mut buffer = BytesMut::new();
        // Fails for a text with NUL in it, and for one that is too long.
        message(&mut buffer).map_err(|_| Fault::Protocol("what we would say has no form in it"))?;
        self.stream.write_all(&buffer).await.map_err(Fault::Broken)
    }

    /// The next message that means something. An error is one.
    async fn receive(&mut self, when: &'static str) -> Result<Message, Fault> {
        loop {
            match parse(&mut self.input)? {
                Some(Message::ErrorResponse(body)) => return Err(refused(&body)),
                Some(
                    Message::NoticeResponse(_)
                    | Message::ParameterStatus(_)
                    | Message::NotificationResponse(_),
                ) => continue,
                Some(message) => return Ok(message),
                None => {}
            }
            self.input.reserve(limits::UNPACK_CHUNK);
            if self.stream.read_buf(&mut self.input).await.map_err(Fault::Broken)? == 0 {
                return Err(Fault::Ended(when));
            }
        }
    }
}

/// Takes the next message off what has come, once it is whole.
fn parse(input: &mut BytesMut) -> Result<Option<Message>, Fault> {
    let garbled = |_| Fault::Protocol("a message that cannot be read");
    // Before anything is reserved for it.
    let header = Header::parse(input).map_err(garbled)?;
    if header.is_some_and(|header| header.len() > limits::PAGESERVER_MESSAGE) {
        return Err(Fault::Protocol("a message that is too long"));
    }
    Message::parse(input).map_err(garbled)
}

/// An answer that comes as a COPY.
#[derive(Debug)]
pub struct CopyOut {
    session: Session,
    done: bool,
}

impl CopyOut {
    /// The next piece; `None` once the server has said that this was all of it, and that it went well. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// How it failed, [`Fault::Silent`] when nothing came `within` that time.
    pub async fn next(&mut self, within: Duration) -> Result<Option<Bytes>, Fault> {
        let silent = Err(Fault::Silent { during: "in the middle of a base backup", after: within });
        timeout(within, self.piece()).await.unwrap_or(silent)
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            match self.session.receive("in the middle of a base backup").await? {
                Message::CopyData(body) if !self.done => return Ok(Some(body.into_bytes())),
                Message::CopyDone if !self.done => self.done = true,
                Message::CommandComplete(_) if self.done => return Ok(None),
                _ => return Err(Fault::Protocol("a COPY that goes on in another way")),
            }
        }
    }
}

/// Where a connection string leads.
struct Address {
    config: Config,
    /// Host or address, and port.
    places: Vec<(String, u16)>,
}

impl Address {
    fn of(server: &Pageserver) -> Result<Self, Fault> {
        let url = server.libpq_url.as_ref().ok_or(Fault::Address("has no libpq_url"))?;
        // Its parser quotes what it does not understand, so its words stay here.
        let config: Config =
            url.reveal().parse().map_err(|_| Fault::Address("is no connection string of libpq's"))?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(Fault::Address("asks for TLS, which pageservers do not speak"));
        }
        let (hosts, ports) = (config.get_hosts(), config.get_ports());
        let count = hosts.len().max(config.get_hostaddrs().len());
        if ports.len() > 1 && ports.len() != count {
            return Err(Fault::Address("has another number of ports than of hosts"));
        }
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let place = |index: usize| match (config.get_hostaddrs().get(index), hosts.get(index)) {
            (Some(address), _) => Some((address.to_string(), port(index))),
            (None, Some(Host::Tcp(host))) => Some((host.clone(), port(index))),
            _ => None,
        };
        let places: Option<Vec<_>> = (0..count).map(place).collect();
        match places {
            Some(places) if !places.is_empty() => Ok(Self { config, places }),
            _ => Err(Fault::Address("has no host that can be reached over TCP")),
        }
    }

    fn name(&self, server: &Pageserver) -> String {
        let places: Vec<String> = self.places.iter().map(|(host, port)| named(server, host, *port)).collect();
        places.join(",")
    }

    async fn connect(&self) -> Result<TcpStream, Fault> {
        let mut last = None;
        for (host, port) in &self.places {
            match TcpStream::connect((host.as_str(), *port)).await {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(Fault::Connect)?;
                    return Ok(stream);
                }
                Err(error) => last = Some(error),
            }
        }
        let error = last.expect("an address has at least one place");
        Err(Fault::Connect(error))
    }
}

/// What a pageserver is called in texts.
pub(super) fn named(server: &Pageserver, host: &str, port: u16) -> String {
    let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match server.node_id {
        Some(id) => format!("{id} at {place}"),
        None => place,
    }
}

/// The same when its address says nothing.
pub(super) fn unnamed(server: &Pageserver) -> String {
    server.node_id.map_or_else(|| "without a usable address".to_owned(), |id| id.to_string())
}

fn refused(body: &ErrorResponseBody) -> Fault {
    let (mut code, mut message) = (String::new(), String::new());
    let mut fields = body.fields();
    // What cannot be read of it is left out: that it is an error is what counts.
    while let Ok(Some(field)) = fields.next() {
        let value = || shortened(&String::from_utf8_lossy(field.value_bytes()));
        match field.type_() {
            b'C' => code = value(),
            b'M' => message = value(),
            _ => {}
        }
    }
    Fault::Refused { code, message }
}

fn row(body: &DataRowBody) -> Result<Row, Fault> {
    let column = |range: Option<std::ops::Range<usize>>| {
        Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()))
    };
    body.ranges().map(column).collect().map_err(|_| Fault::Protocol("a row that cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Pageserver {
        Pageserver { node_id: None, libpq_url: Some(Secret::new(url)), grpc_url: None }
    }

    fn places(url: &str) -> Vec<(String, u16)> {
        Address::of(&server(url)).unwrap_or_else(|error| panic!("{url}: {error}")).places
    }

    #[test]
    fn an_address_leads_to_hosts_and_ports() {
        let at = |host: &str, port| (host.to_owned(), port);
        assert_eq!(places("postgresql://no_user@ps-1.local:6400"), [at("ps-1.local", 6400)]);
        assert_eq!(places("postgres://u:secret@ps/"), [at("ps", 5432)]);
        assert_eq!(places("host=ps port=64000 user=no_user"), [at("ps", 64000)]);
        assert_eq!(places("postgresql://[::1]:7/"), [at("::1", 7)]);
        assert_eq!(places("host=a,b port=1,2"), [at("a", 1), at("b", 2)]);
        assert_eq!(
            places("host=a,b hostaddr=10.0.0.1,10.0.0.2 port=9"),
            [at("10.0.0.1", 9), at("10.0.0.2", 9)]
        );
    }

    #[test]
    fn an_address_that_cannot_be_used_is_not_quoted() {
        for url in [
            "hunter2",
            "postgresql://u:hunter2@ps:99999",
            "host=/var/run password=hunter2",
            "host=ps sslmode=require password=hunter2",
            "user=u password=hunter2",
        ] {
            let error = Address::of(&server(url)).err().unwrap_or_else(|| panic!("{url} is usable"));
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(!error.is_transient(), "{error}");
        }
    }

    #[test]
    fn a_message_is_read_when_it_is_whole_and_not_when_it_is_too_long() {
        let mut input = BytesMut::from(&b"d\0\0\0\x06h"[..]);
        assert!(parse(&mut input).unwrap().is_none());
        input.extend_from_slice(b"i");
        match parse(&mut input).unwrap() {
            Some(Message::CopyData(body)) => assert_eq!(body.data(), b"hi"),
            _ => panic!("it is whole"),
        }
        let long = [&b"d"[..], &(limits::PAGESERVER_MESSAGE + 1).to_be_bytes()].concat();
        for (bytes, words) in
            [(&long[..], "too long"), (b"d\0\0\0\0", "cannot be read"), (b"?\0\0\0\x04", "cannot be read")]
        {
            let mut input = BytesMut::from(bytes);
            let error = parse(&mut input).err().unwrap_or_else(|| panic!("{bytes:?} is a message"));
            assert!(error.to_string().contains(words), "{error}");
            assert!(input.capacity() < 1024, "room was made for it");
        }
    }

    #[test]
    fn a_pageserver_is_named_by_its_place_and_id() {
        let mut server = server("postgresql://u:hunter2@ps:6400");
        assert_eq!(Address::of(&server).unwrap().name(&server), "ps:6400");
        server.node_id = Some(7);
        assert_eq!(Address::of(&server).unwrap().name(&server), "7 at ps:6400");
        assert_eq!(named(&server, "::1", 1), "7 at [::1]:1");
        assert_eq!(unnamed(&server), "7");
    }
}
