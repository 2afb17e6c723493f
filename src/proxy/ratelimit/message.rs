//! The messages of Envoy's rate-limit service v3, as far as they are spoken here.
//!
//! Each struct names the published definition it follows; the tags are that definition's field
//! numbers, and a test holds them to bytes that a real Envoy has sent. A field that Envoy may
//! send and nothing here reads (the `limit` override of a descriptor) is skipped by its number.
//!
//! Values that protobuf calls `string` are read as bytes: on the wire they are the same, and a
//! path that is not UTF-8 must be decided about, not be a broken message that Envoy's
//! `failure_mode_deny: false` waves through.

use bytes::Bytes;
use prost::Message;

/// `envoy.service.ratelimit.v3.RateLimitRequest` (api/envoy/service/ratelimit/v3/rls.proto).
#[derive(Clone, PartialEq, Message)]
pub struct RateLimitRequest {
    /// Whose limits are asked about.
    #[prost(bytes = "bytes", tag = "1")]
    pub domain: Bytes,
    /// What is asked; each is decided by itself.
    #[prost(message, repeated, tag = "2")]
    pub descriptors: Vec<Descriptor>,
    /// What each is worth; 0 stands for 1.
    #[prost(uint32, tag = "3")]
    pub hits_addend: u32,
}

/// `envoy.extensions.common.ratelimit.v3.RateLimitDescriptor`
/// (api/envoy/extensions/common/ratelimit/v3/ratelimit.proto).
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    /// Keys and values.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
    /// What this one is worth, whatever the request says; 0 asks without taking.
    /// (`google.protobuf.UInt64Value`.)
    #[prost(message, optional, tag = "3")]
    pub hits_addend: Option<u64>,
}

/// `RateLimitDescriptor.Entry`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Entry {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `RateLimitResponse.Code`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Code {
    /// Not said.
    Unknown = 0,
    /// Within the limit.
    Ok = 1,
    /// Over it.
    OverLimit = 2,
}

/// `RateLimitResponse.RateLimit.Unit`, those that are used here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Unit {
    /// Not said.
    Unknown = 0,
    /// A second.
    Second = 1,
    /// A minute.
    Minute = 2,
    /// An hour.
    Hour = 3,
    /// A day.
    Day = 4,
}

/// `envoy.service.ratelimit.v3.RateLimitResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct RateLimitResponse {
    /// `OverLimit` if any descriptor is.
    #[prost(enumeration = "Code", tag = "1")]
    pub overall_code: i32,
    /// One for each descriptor, in order.
    #[prost(message, repeated, tag = "2")]
    pub statuses: Vec<DescriptorStatus>,
    /// Added to the answer that the client gets.
    #[prost(message, repeated, tag = "3")]
    pub response_headers_to_add: Vec<HeaderValue>,
    /// The body of a refusal.
    #[prost(bytes = "bytes", tag = "5")]
    pub raw_body: Bytes,
}

/// `RateLimitResponse.DescriptorStatus`.
#[derive(Clone, PartialEq, Message)]
pub struct DescriptorStatus {
    /// What was decided.
    #[prost(enumeration = "Code", tag = "1")]
    pub code: i32,
    /// The limit as it stands.
    #[prost(message, optional, tag = "2")]
    pub current_limit: Option<RateLimit>,
    /// How many more would be let in now.
    #[prost(uint32, tag = "3")]
    pub limit_remaining: u32,
    /// When there are more again.
    #[prost(message, optional, tag = "4")]
    pub duration_until_reset: Option<Duration>,
}

/// `RateLimitResponse.RateLimit`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct RateLimit {
    /// How many in a unit of time.
    #[prost(uint32, tag = "1")]
    pub requests_per_unit: u32,
    /// The unit.
    #[prost(enumeration = "Unit", tag = "2")]
    pub unit: i32,
    /// Whose limit it is: the class.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Duration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// And so many billionths.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `envoy.config.core.v3.HeaderValue` (api/envoy/config/core/v3/base.proto).
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct HeaderValue {
    /// The name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub value: String,
}
