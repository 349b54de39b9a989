//! `vhive invoke`: sends one request to a service through the gateway and shows the reply.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

use super::{Context, get};
use crate::cli::Format;
use crate::{exit, output};

/// Arguments of `vhive invoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the service.
    name: String,
    /// Request body; `@FILE` reads a file. With `--grpc`, the `name` field of the greeting.
    #[arg(long, short)]
    data: Option<String>,
    /// HTTP method; POST with a body, else GET.
    #[arg(long, short = 'X')]
    method: Option<Method>,
    /// Path and query.
    #[arg(long, default_value = "/")]
    path: String,
    /// Extra header, `Name: value`.
    #[arg(long, short = 'H', value_name = "HEADER")]
    header: Vec<String>,
    /// Call `helloworld.Greeter/SayHello` by gRPC instead of HTTP.
    #[arg(long, conflicts_with_all = ["method", "path"])]
    grpc: bool,
    /// Show how the instance was started and where the time went.
    #[arg(long)]
    trace: bool,
}

/// Sends the request. Exit code 6 when the function's status is 400 or more, or gRPC's is not 0.
///
/// # Errors
/// When the node does not answer or the reply breaks off.
pub(crate) async fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let node: serde_json::Value = context.client.get("/vhive/v1/node").await?;
    let gateway = node["gateway"].as_str().context("the node has no gateway")?;
    let domain = node["domain"].as_str().unwrap_or("example.com");
    let host = format!("{}.{}.{domain}", args.name, context.global.namespace());
    let request = if args.grpc { grpc_request(&host, &args)? } else { http_request(&host, &args)? };
    let begun = std::time::Instant::now();
    let reply =
        if args.grpc { send_h2(gateway, request).await } else { send_h1(gateway, request).await };
    let reply = reply.with_context(|| format!("no reply from the gateway at {gateway}"))?;
    let (head, body) = reply.into_parts();
    let limited = Limited::new(body, 64 << 20).collect().await;
    let collected = limited.map_err(|e| anyhow::anyhow!(e)).context("the reply broke off")?;
    let millis = begun.elapsed().as_secs_f64() * 1e3;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let bytes = collected.to_bytes();
    let grpc_status = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
    let failed = head.status.as_u16() >= 400
        || (args.grpc && grpc_status.is_none_or(|status| status != "0"));
    let text = if args.grpc && !failed { greeting(&bytes)? } else { lossy(&bytes) };
    let id = head.headers.get("x-request-id").and_then(|v| v.to_str().ok());
    let record = match id {
        Some(id) if args.trace || context.global.output == Format::Json => {
            get::record_by_id(context, &args.name, id).await?
        }
        _ => None,
    };
    if context.global.output == Format::Json {
        let grpc_status = grpc_status.and_then(|v| v.to_str().ok());
        output::json(&json!({
            "status": head.status.as_u16(), "grpc_status": grpc_status, "body": text,
            "milliseconds": millis, "record": record,
        }))?;
    } else {
        output::line(text.trim_end());
        if failed {
            output::note(format!("status {} after {millis:.1} ms", head.status));
        }
        if let Some(record) = &record {
            output::note(get::trace(record));
        }
    }
    Ok(if failed { ExitCode::from(exit::FUNCTION_ERROR) } else { ExitCode::SUCCESS })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn http_request(host: &str, args: &Args) -> anyhow::Result<Request<Full<Bytes>>> {
    let body = match args.data.as_deref() {
        None => None,
        Some(data) => Some(match data.strip_prefix('@') {
            None => data.as_bytes().to_vec(),
            Some(path) => {
                let path = PathBuf::from(path);
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?
            }
        }),
    };
    let default = if body.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::builder()
        .method(args.method.clone().unwrap_or(default))
        .uri(&args.path)
        .header("host", host)
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .with_context(|| format!("{:?} is not a path", args.path))?;
    for header in &args.header {
        let (name, value) = header.split_once(':').context("a header is `Name: value`")?;
        let name: HeaderName = name.trim().parse().context("bad header name")?;
        let value: HeaderValue = value.trim().parse().context("bad header value")?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// A `HelloRequest { string name = 1 }` in gRPC framing.
///
/// # Source
/// gRPC over HTTP/2, `PROTOCOL-HTTP2.md`; Protocol Buffers encoding.
fn grpc_request(host: &str, args: &Args) -> anyhow::Result<Request<Full<Bytes>>> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct HelloRequest {
        #[prost(string, tag = "1")]
        name: String,
    }
    let name = args.data.clone().unwrap_or_else(|| "world".to_owned());
    let message = prost::Message::encode_to_vec(&HelloRequest { name });
    let length = u32::try_from(message.len()).context("the name is too long")?;
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    Ok(Request::post(format!("http://{host}/helloworld.Greeter/SayHello"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(frame)))?)
}

fn greeting(frame: &[u8]) -> anyhow::Result<String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct HelloReply {
        #[prost(string, tag = "1")]
        message: String,
    }
    let Some((0, rest)) = frame.split_first().map(|(flag, rest)| (*flag, rest)) else {
        bail!("the reply is not an uncompressed gRPC message");
    };
    let message = rest.get(4..).context("the reply is too short for a gRPC message")?;
    let reply: HelloReply =
        prost::Message::decode(message).context("the reply is no HelloReply")?;
    Ok(reply.message)
}

async fn send_h1(
    gateway: &str,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Incoming>> {
    let io = TokioIo::new(TcpStream::connect(gateway).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

async fn send_h2(
    gateway: &str,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Incoming>> {
    let io = TokioIo::new(TcpStream::connect(gateway).await?);
    let executor = TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_unframed() {
        assert_eq!(greeting(b"\0\0\0\0\x04\x0a\x02hi").unwrap(), "hi");
        for broken in [&b""[..], b"\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x04\x0a\xff"] {
            assert!(greeting(broken).is_err());
        }
    }
}
