//! The calls: path to method, message to value, error to status, and the caller's deadline. It decides nothing itself.

use super::log::cut;
use super::proto::fleeting::{
    ConnectInfoRequest, ConnectInfoResponse, ConnectorConfig, DecreaseRequest, DecreaseResponse, HeartbeatRequest,
    IncreaseRequest, IncreaseResponse, InitRequest, InitResponse, ResumeRequest, ResumeResponse, State as WireState,
    SuspendRequest, SuspendResponse, UpdateResponse,
};
use super::proto::health::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use super::proto::status::{self as rpc, Detail};
use super::server::Server;
use crate::access::Protocol;
use crate::cloud::Secret;
use crate::config::Connector;
use crate::driver::{CallError, ConnectInfo};
use crate::group::{Name, Outcome, State};
use hyper::body::{Buf, Bytes, Incoming};
use hyper::http::{self, HeaderMap};
use prost::Message;
use prost::bytes::BufMut;
use smol::Timer;
use smol::future::or;
use smol::stream::{self, Stream, StreamExt};
use std::future::{self, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, ServerStreamingService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

/// Maximum size of a message, in both directions.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Maximum length of the text of a status, in bytes: it is sent in a header.
const MAX_STATUS_TEXT: usize = 8 * 1024;

/// The services in the host's health checks. The empty name is the whole server.
const SERVICES: [&str; 2] = ["", "plugin"];

/// Answers one call before its deadline.
pub async fn answer(server: Rc<Server>, request: http::Request<Incoming>) -> http::Response<Body> {
    let path = request.uri().path().to_owned();
    match time_limit(request.headers()) {
        Ok(None) => dispatch(&server, &path, None, request).await,
        Ok(Some(limit)) => {
            // None: more than the clock can represent.
            let deadline = Instant::now().checked_add(limit);
            let late = async {
                deadline.map_or_else(Timer::never, Timer::at).await;
                refuse(&path, Status::deadline_exceeded("the call's deadline has passed"))
            };
            or(dispatch(&server, &path, deadline, request), late).await
        }
        Err(status) => refuse(&path, status),
    }
}

/// Finds the method and runs it. For tonic every method (except the broker's) is one from a byte string to a stream of
/// byte strings: this makes no difference on the wire, and tonic's code is compiled once instead of once per method.
async fn dispatch(
    server: &Rc<Server>,
    path: &str,
    deadline: Option<Instant>,
    request: http::Request<Incoming>,
) -> http::Response<Body> {
    let mut grpc =
        Grpc::new(Bytestrings::default()).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    if path == "/plugin.GRPCBroker/StartStream" {
        let mut stopped = Some(server.stopped());
        let broker = move |mut messages: Streaming<Bytes>| {
            let stopped = stopped.take();
            let ended = async move { while let Ok(Some(_)) = messages.message().await {} };
            let end = async move {
                match stopped {
                    Some(stopped) => or(stopped, ended).await,
                    None => ended.await,
                }
            };
            let answers: Answers = Box::pin(silence(end));
            future::ready(Ok(Response::new(answers)))
        };
        return grpc.streaming(Method(broker), request).await;
    }
    let method = |message| async {
        let answers = call(server, path, deadline, message).await;
        answers.map(Response::new).inspect_err(|status| note(path, status))
    };
    grpc.server_streaming(Method(method), request).await
}

/// The answer of a method.
type Answers = Pin<Box<dyn Stream<Item = Result<Answer, Status>> + Send>>;

/// A message of an answer.
enum Answer {
    Encoded(Vec<u8>),
    /// One of the many of an Update: encoded where it is sent.
    Instance(Name, State),
}

async fn call(server: &Rc<Server>, path: &str, deadline: Option<Instant>, message: Bytes) -> Result<Answers, Status> {
    let plugin = &server.plugin;
    match path {
        "/proto.InstanceGroup/Init" => {
            let message: InitRequest = decode(message)?;
            let connector = message.settings.and_then(|settings| settings.connector_config).unwrap_or_default();
            let provider = plugin.init(&message.config, connector_in(connector)).await.map_err(|error| {
                let error = status(error);
                log::error!(
                    "Init failed: {}. No VM is created or deleted until GitLab Runner starts the plugin again; \
                     `{} check` shows the fix",
                    error.message(),
                    env!("CARGO_PKG_NAME")
                );
                error
            })?;
            reply(&InitResponse {
                id: provider.id,
                max_size: provider.max_size,
                version: provider.version,
                build_info: provider.build_info,
                capabilities: provider.capabilities,
            })
        }
        "/proto.InstanceGroup/Update" => {
            let instances = plugin.update().map_err(status)?.into_iter();
            Ok(Box::pin(stream::iter(instances.map(|(name, state)| Ok(Answer::Instance(name, state))))))
        }
        "/proto.InstanceGroup/Increase" => {
            let message: IncreaseRequest = decode(message)?;
            reply(&IncreaseResponse { succeeded: plugin.increase(message.n).map_err(status)? })
        }
        "/proto.InstanceGroup/Decrease" => {
            let message: DecreaseRequest = decode(message)?;
            reply(&DecreaseResponse { succeeded: plugin.decrease(message.instances).map_err(status)? })
        }
        "/proto.InstanceGroup/ConnectInfo" => {
            let message: ConnectInfoRequest = decode(message)?;
            reply(&connect_info_out(plugin.connect_info(&message.instance).map_err(status)?))
        }
        "/proto.InstanceGroup/Heartbeat" => {
            let message: HeartbeatRequest = decode(message)?;
            plugin.heartbeat(&message.instance).map_err(status)?;
            reply(&())
        }
        "/proto.InstanceGroup/Suspend" => {
            let message: SuspendRequest = decode(message)?;
            let Outcome { succeeded, refused } = plugin.suspend(message.instances).map_err(status)?;
            reply_in_part(&SuspendResponse { succeeded: texts(succeeded) }, "proto.SuspendResponse", &refused)
        }
        "/proto.InstanceGroup/Resume" => {
            let message: ResumeRequest = decode(message)?;
            let Outcome { succeeded, refused } = plugin.resume(message.instances).map_err(status)?;
            reply_in_part(&ResumeResponse { succeeded: texts(succeeded) }, "proto.ResumeResponse", &refused)
        }
        "/proto.InstanceGroup/Shutdown" => {
            let remaining = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            plugin.shutdown(remaining).await.map_err(status)?;
            reply(&())
        }
        "/plugin.GRPCController/Shutdown" => {
            server.shut_down();
            reply(&())
        }
        "/plugin.GRPCStdio/StreamStdio" => Ok(Box::pin(silence(server.stopped()))),
        "/grpc.health.v1.Health/Check" => {
            let message: HealthCheckRequest = decode(message)?;
            match SERVICES.contains(&message.service.as_str()) {
                true => reply(&health(ServingStatus::Serving)),
                false => Err(Status::not_found("no such service")),
            }
        }
        "/grpc.health.v1.Health/Watch" => {
            let message: HealthCheckRequest = decode(message)?;
            let known = SERVICES.contains(&message.service.as_str());
            let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
            let now = stream::once(Ok(Answer::Encoded(health(status).encode_to_vec())));
            Ok(Box::pin(now.chain(silence(server.stopped()))))
        }
        _ => Err(Status::unimplemented("unknown service or method")),
    }
}

fn decode<Q: Message + Default>(message: Bytes) -> Result<Q, Status> {
    Q::decode(message).map_err(|error| Status::internal(format!("malformed message: {error}")))
}

/// The answer of a call with one message.
fn reply(message: &impl Message) -> Result<Answers, Status> {
    Ok(Box::pin(stream::once(Ok(Answer::Encoded(message.encode_to_vec())))))
}

fn texts(names: Vec<Name>) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// The answer of a call that may have failed for some of its instances: the host discards the message of a failed call,
/// but reads the same message, named `name`, in the status' details.
fn reply_in_part(message: &impl Message, name: &str, refused: &[String]) -> Result<Answers, Status> {
    if refused.is_empty() {
        return reply(message);
    }
    let text = cut(&refused.join("; "), MAX_STATUS_TEXT);
    let part = Detail { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() };
    let code = tonic::Code::FailedPrecondition;
    let details = rpc::Status { code: code as i32, message: text.clone(), details: vec![part] };
    Err(Status::with_details(code, text, details.encode_to_vec().into()))
}

/// tonic's framing for messages that are encoded already, or not decoded yet.
#[derive(Default)]
struct Bytestrings {
    /// One for all messages of an Update.
    instance: UpdateResponse,
    /// Its bytes: tonic's buffer takes them faster at once than one by one.
    bytes: Vec<u8>,
}

impl Codec for Bytestrings {
    type Encode = Answer;
    type Decode = Bytes;
    type Encoder = Bytestrings;
    type Decoder = Bytestrings;

    fn encoder(&mut self) -> Bytestrings {
        Bytestrings::default()
    }

    fn decoder(&mut self) -> Bytestrings {
        Bytestrings::default()
    }
}

impl Encoder for Bytestrings {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match answer {
            Answer::Encoded(message) => to.put_slice(&message),
            Answer::Instance(name, state) => {
                self.instance.instance.clear();
                self.instance.instance.push_str(&name);
                self.instance.state = state_out(state).into();
                self.bytes.clear();
                self.instance.encode(&mut self.bytes).map_err(|error| Status::internal(error.to_string()))?;
                to.put_slice(&self.bytes);
            }
        }
        Ok(())
    }
}

impl Decoder for Bytestrings {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A closure as a tonic method. Its future need not be `Send`.
struct Method<F>(F);

impl<F, R> ServerStreamingService<Bytes> for Method<F>
where
    F: FnMut(Bytes) -> R,
    R: Future<Output = Result<Response<Answers>, Status>>,
{
    type Response = Answer;
    type ResponseStream = Answers;
    type Future = R;

    fn call(&mut self, request: Request<Bytes>) -> R {
        (self.0)(request.into_inner())
    }
}

impl<F, R> StreamingService<Bytes> for Method<F>
where
    F: FnMut(Streaming<Bytes>) -> R,
    R: Future<Output = Result<Response<Answers>, Status>>,
{
    type Response = Answer;
    type ResponseStream = Answers;
    type Future = R;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> R {
        (self.0)(request.into_inner())
    }
}

/// The answer of a call that is rejected before it is read.
fn refuse(path: &str, status: Status) -> http::Response<Body> {
    note(path, &status);
    status.into_http()
}

fn note(path: &str, status: &Status) {
    log::debug!("{} {:?}: {}", cut(path, 200), status.code(), status.message());
}

/// A stream without messages that ends with `end`.
fn silence(end: impl Future<Output = ()> + Send) -> impl Stream<Item = Result<Answer, Status>> + Send {
    stream::once_future(end).filter_map(|()| None)
}

fn status(error: CallError) -> Status {
    let text = |text: &str| cut(text, MAX_STATUS_TEXT);
    match error {
        CallError::NotReady(reason) => Status::failed_precondition(text(&reason)),
        CallError::Invalid(reason) => Status::invalid_argument(text(&reason)),
        CallError::NotFound(reason) => Status::not_found(text(&reason)),
        CallError::Unavailable(reason) => Status::unavailable(text(&reason)),
        CallError::Unsupported(reason) => Status::unimplemented(text(&reason)),
    }
}

/// `grpc-timeout`: at most eight digits and a unit.
fn time_limit(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let limit = || {
        let text = value.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let count: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(count * 3600),
            "M" => Duration::from_secs(count * 60),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        })
    };
    match limit() {
        Some(limit) => Ok(Some(limit)),
        None => Err(Status::invalid_argument("grpc-timeout is malformed")),
    }
}

fn health(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn state_out(state: State) -> WireState {
    match state {
        State::Creating => WireState::Creating,
        State::Running => WireState::Running,
        State::Deleting => WireState::Deleting,
        State::Deleted => WireState::Deleted,
        State::Timeout => WireState::Timeout,
        State::Suspending => WireState::Suspending,
        State::Suspended => WireState::Suspended,
        State::Resuming => WireState::Resuming,
    }
}

fn connector_in(config: ConnectorConfig) -> Connector {
    Connector {
        os: config.os,
        arch: config.arch,
        protocol: config.protocol,
        username: config.username,
        password: config.password,
        key: config.key,
        use_static_credentials: config.use_static_credentials,
        keepalive: config.keepalive,
        timeout: config.timeout,
        protocol_port: config.protocol_port,
    }
}

fn connect_info_out(info: ConnectInfo) -> ConnectInfoResponse {
    let login = info.login;
    let text = |secret: Option<Secret>| secret.map_or_else(String::new, |secret| secret.reveal().to_owned());
    let protocol = match login.protocol {
        Protocol::Ssh => "ssh",
        Protocol::Winrm => "winrm",
        Protocol::WinrmHttps => "winrm+https",
    };
    ConnectInfoResponse {
        connector: Some(ConnectorConfig {
            os: login.os,
            arch: login.arch,
            protocol: protocol.to_owned(),
            username: login.username,
            use_static_credentials: login.password.is_some() || login.key.is_some(),
            password: text(login.password),
            key: text(login.key).into_bytes(),
            keepalive: login.keepalive,
            timeout: login.timeout,
            protocol_port: login.port.into(),
        }),
        external_addr: info.external.to_string(),
        internal_addr: info.internal.to_string(),
        // Addresses and logins of an instance stay.
        expires: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        time_limit(&headers).ok().flatten()
    }

    #[test]
    fn time_limits_have_digits_and_a_unit() {
        assert_eq!(limit("30S"), Some(Duration::from_secs(30)));
        assert_eq!(limit("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(limit("2M"), Some(Duration::from_secs(120)));
        assert_eq!(limit("29999900u"), Some(Duration::from_micros(29_999_900)));
        assert_eq!(limit("5m"), Some(Duration::from_millis(5)));
        assert_eq!(limit("7n"), Some(Duration::from_nanos(7)));
        for wrong in ["", "S", "30", "-1S", "+1S", "1 S", "123456789S", "1s", "1ä"] {
            assert_eq!(limit(wrong), None, "{wrong:?}");
        }
        assert!(time_limit(&HeaderMap::new()).is_ok_and(|limit| limit.is_none()));
    }

    #[test]
    fn long_reasons_are_cut() {
        let long = "x".repeat(100_000);
        let whole = status(CallError::NotFound(long.clone()));
        let part = reply_in_part(&SuspendResponse::default(), "proto.SuspendResponse", &[long]).err().unwrap();
        for message in [whole.message(), part.message()] {
            assert_eq!((message.len(), message.ends_with('…')), (MAX_STATUS_TEXT + "…".len(), true));
        }
        assert!(part.details().len() < 2 * MAX_STATUS_TEXT);
    }
}
