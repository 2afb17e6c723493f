//! The PROXY protocol, versions 1 and 2: a load balancer says for whom it connects.
//!
//! It comes before anything else on a connection, TLS included, and so it is read to the byte
//! and no further. Who may be believed is not decided here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, CR LF included.
const LINE_MAX: usize = 107;

/// The longest version 2 header that is read, in bytes after its first sixteen.
const EXTENSION_MAX: usize = 4096;

/// Reads the header off a stream: the client's address, or `None` where the balancer speaks
/// for itself (health checks) or does not know.
///
/// # Errors
/// `InvalidData` when there is no header, or what the stream says.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE { read_binary(stream).await } else { read_text(stream, &start).await }
}

async fn read_binary(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [command, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 || length > EXTENSION_MAX {
        return Err(invalid());
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match (command & 0xf, family >> 4) {
        (1, 1) => {
            let source: [u8; 4] =
                rest.get(..4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)?;
            Ok(Some(Ipv4Addr::from(source).into()))
        }
        (1, 2) => {
            let source: [u8; 16] =
                rest.get(..16).and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)?;
            Ok(Some(Ipv6Addr::from(source).to_canonical()))
        }
        (0 | 1, _) => Ok(None),
        _ => Err(invalid()),
    }
}

async fn read_text(stream: &mut (impl AsyncRead + Unpin), start: &[u8]) -> io::Result<Option<IpAddr>> {
    if !start.starts_with(b"PROXY ") {
        return Err(invalid());
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LINE_MAX {
            return Err(invalid());
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| invalid())?;
    let words: Vec<&str> = line.split(' ').collect();
    match (words.get(1).copied(), words.get(2).copied()) {
        (Some("UNKNOWN"), _) => Ok(None),
        (Some("TCP4" | "TCP6"), Some(source)) if words.len() == 6 => {
            source.parse::<IpAddr>().map(|source| Some(source.to_canonical())).map_err(|_| invalid())
        }
        _ => Err(invalid()),
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no PROXY protocol header")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(bytes: &[u8]) -> (Result<Option<IpAddr>, io::ErrorKind>, usize) {
        let mut stream = bytes;
        let told = read(&mut stream).await.map_err(|error| error.kind());
        (told, stream.len())
    }

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family, 0, u8::try_from(addresses.len()).unwrap()]);
        bytes.extend(addresses);
        bytes.extend(b"GET");
        bytes
    }

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_the_rest_alone() {
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(told(b"PROXY TCP4 192.0.2.7 192.0.2.1 5 80\r\nGET").await, (Ok(Some(v4)), 3));
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(told(b"PROXY TCP6 2001:db8::1 ::1 5 80\r\nGET").await, (Ok(Some(v6)), 3));
        assert_eq!(told(b"PROXY UNKNOWN\r\nGET").await, (Ok(None), 3));
        assert_eq!(
            told(&binary(0x21, 0x11, &[192, 0, 2, 7, 1, 1, 1, 1, 0, 5, 0, 80])).await,
            (Ok(Some(v4)), 3)
        );
        assert_eq!(told(&binary(0x20, 0, &[])).await, (Ok(None), 3), "a health check");
        let mut addresses = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        addresses.extend([0; 20]);
        assert_eq!(told(&binary(0x21, 0x21, &addresses)).await, (Ok(Some(v6)), 3));
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 nonsense 1 2 3\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7\r\n".to_vec(),
            [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(),
            binary(0x31, 0x11, &[0; 12]),
            binary(0x21, 0x11, &[0; 2]),
            b"PROXY".to_vec(),
        ] {
            assert!(told(&bytes).await.0.is_err(), "{bytes:?}");
        }
    }
}
