//! The libpq side, frame by frame.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Answer, Door, Lease, Refusal, Request, State, Then, Transport, What};

pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        // A client that hangs up early is what some tests are about.
        tokio::spawn(async move { Connection { stream }.serve(&state).await.ok() });
    }
}

struct Connection {
    stream: TcpStream,
}

/// What a client says of itself.
#[derive(Clone, Default)]
struct Client {
    application: Option<String>,
    options: Option<String>,
    token: Option<String>,
}

impl Connection {
    async fn serve(&mut self, state: &State) -> io::Result<()> {
        let mut client = self.startup().await?;
        match state.door() {
            Door::Open => {}
            Door::Silent => return self.hang().await,
            Door::Md5 => {
                self.frame(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]).await?;
                return self.hang().await;
            }
            Door::Token(token, refusal) => {
                self.frame(b'R', &3_i32.to_be_bytes()).await?;
                let (tag, password) = self.message().await?;
                let given = text(password.strip_suffix(b"\0").unwrap_or(&password));
                if tag != b'p' || given != token {
                    return self.error(&refusal).await;
                }
                client.token = Some(given);
            }
        }
        self.frame(b'R', &0_i32.to_be_bytes()).await?;
        self.frame(b'S', b"server_version\x0014.1\0").await?;
        self.frame(b'K', &[0; 8]).await?;
        loop {
            self.frame(b'Z', b"I").await?;
            match self.message().await? {
                (b'Q', query) => {
                    let query = text(query.strip_suffix(b"\0").unwrap_or(&query));
                    if !self.query(&query, &client, state).await? {
                        return Ok(());
                    }
                }
                (b'X', _) => return Ok(()),
                // Parse and its like are not spoken.
                _ => return self.error(&Refusal::new("08P01", 0, "unexpected message")).await,
            }
        }
    }

    async fn startup(&mut self) -> io::Result<Client> {
        let length = self.stream.read_i32().await?;
        let mut body = vec![0; usize::try_from(length - 4).map_err(io::Error::other)?];
        self.stream.read_exact(&mut body).await?;
        assert_eq!(body[..4], 196_608_i32.to_be_bytes(), "protocol 3.0, and no TLS");
        let mut client = Client::default();
        let words: Vec<String> = body[4..].split(|byte| *byte == 0).map(text).collect();
        for pair in words.chunks(2) {
            match pair {
                [name, value] if name == "application_name" => client.application = Some(value.clone()),
                [name, value] if name == "options" => client.options = Some(value.clone()),
                _ => {}
            }
        }
        Ok(client)
    }

    /// Answers a query; `false` if the connection is to be closed.
    async fn query(&mut self, query: &str, client: &Client, state: &State) -> io::Result<bool> {
        let Some(request) = understood(query, client) else {
            self.error(&Refusal::new("XX000", 0, "invalid command")).await?;
            return Ok(true);
        };
        if request.what == What::Lease {
            match state.lease(request) {
                Lease::Until(millis) => self.row(Some(&millis.to_string())).await?,
                Lease::Refused => self.row(None).await?,
                Lease::Error(refusal) => self.error(&refusal).await?,
                Lease::Silence => self.hang().await?,
            }
            return Ok(true);
        }
        match state.backup(request) {
            Answer::Error(refusal) => self.error(&refusal).await?,
            Answer::Silence => self.hang().await?,
            Answer::Close => return Ok(false),
            Answer::Archive(sending) => {
                self.frame(b'H', &[0, 0, 0]).await?;
                for piece in sending.pieces() {
                    self.frame(b'd', piece).await?;
                }
                match &sending.then {
                    Then::Finish => {
                        self.frame(b'c', b"").await?;
                        self.frame(b'C', b"SELECT 1\0").await?;
                    }
                    Then::Hang => self.hang().await?,
                    Then::Close => return Ok(false),
                    Then::Error(refusal) => self.error(refusal).await?,
                    Then::HalfAnEnd => {
                        self.frame(b'c', b"").await?;
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    async fn row(&mut self, value: Option<&str>) -> io::Result<()> {
        let mut column = vec![0, 1];
        column.extend(b"valid_until\0");
        column.extend([0; 6]);
        column.extend([0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        self.frame(b'T', &column).await?;
        let mut row = vec![0, 1];
        match value {
            Some(value) => {
                row.extend(i32::try_from(value.len()).expect("it is short").to_be_bytes());
                row.extend(value.as_bytes());
            }
            None => row.extend((-1_i32).to_be_bytes()),
        }
        self.frame(b'D', &row).await?;
        self.frame(b'C', b"SELECT 1\0").await
    }

    async fn error(&mut self, refusal: &Refusal) -> io::Result<()> {
        let body = format!("SERROR\0C{}\0M{}\0\0", refusal.sqlstate, refusal.message);
        self.frame(b'E', body.as_bytes()).await
    }

    async fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let tag = self.stream.read_u8().await?;
        let length = self.stream.read_i32().await?;
        let mut body = vec![0; usize::try_from(length - 4).map_err(io::Error::other)?];
        self.stream.read_exact(&mut body).await?;
        Ok((tag, body))
    }

    async fn frame(&mut self, tag: u8, body: &[u8]) -> io::Result<()> {
        let length = i32::try_from(body.len() + 4).map_err(io::Error::other)?;
        let mut frame = vec![tag];
        frame.extend(length.to_be_bytes());
        frame.extend(body);
        self.stream.write_all(&frame).await
    }

    /// Until the client gives up.
    async fn hang(&mut self) -> io::Result<()> {
        let mut ignored = [0; 64];
        while self.stream.read(&mut ignored).await? > 0 {}
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command, if it follows the grammar.
fn understood(query: &str, client: &Client) -> Option<Request> {
    let words: Vec<&str> = query.split_whitespace().collect();
    let (command, arguments) = words.split_first()?;
    let id = |word: &str| {
        (word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| word.to_owned())
    };
    let lsn = |word: &str| {
        let (high, low) = word.split_once('/')?;
        let half = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
        // There is no log at 0/0, and who means the newest place leaves it out.
        Some(half(high)? << 32 | half(low)?).filter(|lsn| *lsn > 0)
    };
    let Client { application, options, token } = client.clone();
    let request = |tenant, timeline, shard, lsn, what| {
        let transport = Transport::Libpq;
        Some(Request { transport, application, options, token, tenant, timeline, shard, lsn, what })
    };
    match (command.to_ascii_lowercase().as_str(), arguments) {
        ("basebackup", [tenant, timeline, rest @ ..]) => {
            let (at, flags) = match rest.split_first() {
                Some((&"latest", flags)) => (0, flags),
                Some((word, flags)) if !word.starts_with("--") => (lsn(word)?, flags),
                _ => (0, rest),
            };
            let count = |flag| flags.iter().filter(|word| **word == flag).count();
            let (gzip, replica) = (count("--gzip"), count("--replica"));
            if gzip > 1 || replica > 1 || gzip + replica < flags.len() {
                return None;
            }
            let what = What::BaseBackup { gzip: gzip == 1, replica: replica == 1 };
            request(id(tenant)?, id(timeline)?, None, at, what)
        }
        ("lease", ["lsn", tenant, timeline, at]) => {
            let (tenant, shard) = match tenant.split_once('-') {
                Some((tenant, shard)) if shard.len() == 4 => (tenant, Some(shard.to_owned())),
                Some(_) => return None,
                None => (*tenant, None),
            };
            request(id(tenant)?, id(timeline)?, shard, lsn(at)?, What::Lease)
        }
        _ => None,
    }
}
