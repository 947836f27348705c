//! A stream that comes back as it is: what a round trip costs without anything behind it. The
//! workspace beside this one measures by it, too.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::{Request, Response, Status, Streaming};

pub(crate) const PATH: &str = "/bench.Echo/Flow";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Blob {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) body: Bytes,
}

pub(crate) type Codec = tonic_prost::ProstCodec<Blob, Blob>;

#[derive(Clone)]
pub(crate) struct Echo;

impl tonic::server::StreamingService<Blob> for Echo {
    type Response = Blob;
    type ResponseStream = Streaming<Blob>;
    type Future = BoxFuture<Response<Streaming<Blob>>, Status>;

    fn call(&mut self, request: Request<Streaming<Blob>>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

impl<B> Service<http::Request<B>> for Echo
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(Codec::default()).streaming(Echo, request).await)
        })
    }
}

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}
