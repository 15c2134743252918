//! Requests for `http` URLs through a proxy, in the absolute form (RFC 9112, 3.2.2): `GET http://host/path HTTP/1.1`.
//!
//! The HTTP library supports only tunnels (`CONNECT`). Proxies commonly refuse tunnels to port 80; squid's default
//! rules do.

use std::io::{Read, Write};
use std::sync::Arc;

use base64::Engine;
use ureq::Error;
use ureq::http::Uri;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::proxy::Proxy;

/// Connects to a proxy instead of the server of an `http` URL.
pub struct ForwardProxy(Option<Target>);

/// Does not show credentials.
impl std::fmt::Debug for ForwardProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Forward").field(&self.0.as_ref().map(|target| &target.proxy)).finish()
    }
}

struct Target {
    proxy: Uri,
    /// The `Proxy-Authorization` header, or an empty text.
    authorization: String,
}

impl ForwardProxy {
    /// A connector for this proxy; without a proxy it does not change connections. Fails if the proxy has no usable
    /// address.
    pub fn new(proxy: Option<&Proxy>) -> Result<Self, String> {
        let target = |proxy: &Proxy| {
            let uri = proxy.origin().parse().map_err(|_| format!("{}: unusable proxy address", proxy.origin()))?;
            let encode = |pair: String| base64::engine::general_purpose::STANDARD.encode(pair);
            let authorization =
                proxy.credentials().map(|pair| format!("Proxy-Authorization: Basic {}\r\n", encode(pair)));
            Ok(Target { proxy: uri, authorization: authorization.unwrap_or_default() })
        };
        proxy.map(target).transpose().map(Self)
    }
}

impl<In: Transport> Connector<In> for ForwardProxy {
    type Out = Either<In, Forwarded>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(transport) = chained {
            return Ok(Some(Either::A(transport)));
        }
        // The library runs the whole chain of connectors again for the connection to the proxy itself.
        let Some(target) = self.0.as_ref().filter(|target| target.proxy != *details.uri) else { return Ok(None) };
        let to_proxy = ConnectionDetails {
            uri: &target.proxy,
            addrs: details.resolver.resolve(&target.proxy, details.config, details.timeout)?,
            resolver: details.resolver,
            config: details.config,
            request_level: details.request_level,
            now: details.now,
            timeout: details.timeout,
            current_time: Arc::clone(&details.current_time),
            run_connector: Arc::clone(&details.run_connector),
            register_shutdown: Arc::clone(&details.register_shutdown),
        };
        let transport = (details.run_connector)(&to_proxy)?;
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        let host = authority.rsplit('@').next().unwrap_or_default();
        let (input, output) = (details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(Forwarded {
            prefix: format!("http://{host}"),
            authorization: target.authorization.clone(),
            is_head_due: true,
            buffers: LazyBuffers::new(input, output),
            stream: TransportAdapter::new(transport, Arc::clone(&details.current_time)),
        })))
    }
}

/// A connection to a proxy that forwards requests to one server.
pub struct Forwarded {
    prefix: String,
    authorization: String,
    /// Whether the next output is the head of a request. The library checks that a kept connection is open before each
    /// request, and never within one.
    is_head_due: bool,
    buffers: LazyBuffers,
    stream: TransportAdapter,
}

impl std::fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Forwarded").field(&self.prefix).field(&self.stream.inner()).finish()
    }
}

impl Transport for Forwarded {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        if std::mem::take(&mut self.is_head_due) {
            let (line, rest) = absolute(output, &self.prefix)?;
            self.stream.write_all(&[&line[..], self.authorization.as_bytes(), rest].concat())?;
        } else {
            self.stream.write_all(output)?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.is_head_due = true;
        self.stream.get_mut().is_open()
    }
}

/// The request line of `head` in the absolute form, and the bytes after it. Fails if `head` does not begin with a
/// request line.
fn absolute<'a>(head: &'a [u8], prefix: &str) -> Result<(Vec<u8>, &'a [u8]), Error> {
    let method = head.windows(2).position(|bytes| bytes == b" /").filter(|at| head[..*at].is_ascii());
    let end = head.windows(2).position(|bytes| bytes == b"\r\n");
    let (Some(method), Some(end)) = (method, end) else {
        return Err(Error::BadUri("the request line is too long for a proxy".to_owned()));
    };
    let line = [&head[..=method], prefix.as_bytes(), &head[method + 1..end + 2]].concat();
    Ok((line, &head[end + 2..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_request_line_in_the_absolute_form() {
        let head = b"PATCH /api/v4/jobs/1/trace?a=b HTTP/1.1\r\nhost: h\r\n\r\nPOST / HTTP/1.1\r\n";
        let (line, rest) = absolute(head, "http://h:8080").expect("a request line");
        assert_eq!(line, b"PATCH http://h:8080/api/v4/jobs/1/trace?a=b HTTP/1.1\r\n");
        assert_eq!(rest, b"host: h\r\n\r\nPOST / HTTP/1.1\r\n");
        assert!(absolute(b"GET /no-end", "http://h").is_err());
    }
}
