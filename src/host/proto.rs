// Generated from proto/*.proto by proto/generate. Do not edit; to generate it again:
//     cargo run --manifest-path proto/generate/Cargo.toml
#![allow(missing_docs)]

pub mod fleeting {
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    #[prost(skip_debug)]
    pub struct InitRequest {
        /// plugin_config as JSON.
        #[prost(bytes = "vec", tag = "1")]
        pub config: ::prost::alloc::vec::Vec<u8>,
        #[prost(message, optional, tag = "2")]
        pub settings: ::core::option::Option<Settings>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    #[prost(skip_debug)]
    pub struct Settings {
        #[prost(message, optional, tag = "1")]
        pub connector_config: ::core::option::Option<ConnectorConfig>,
    }
    /// How the host logs in to an instance.
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    #[prost(skip_debug)]
    pub struct ConnectorConfig {
        /// Go's name, such as linux.
        #[prost(string, tag = "1")]
        pub os: ::prost::alloc::string::String,
        /// Go's name, such as amd64.
        #[prost(string, tag = "2")]
        pub arch: ::prost::alloc::string::String,
        /// ssh, winrm, winrm+https, or empty.
        #[prost(string, tag = "3")]
        pub protocol: ::prost::alloc::string::String,
        #[prost(string, tag = "4")]
        pub username: ::prost::alloc::string::String,
        #[prost(string, tag = "5")]
        pub password: ::prost::alloc::string::String,
        /// A private key, PEM.
        #[prost(bytes = "vec", tag = "6")]
        pub key: ::prost::alloc::vec::Vec<u8>,
        #[prost(bool, tag = "7")]
        pub use_static_credentials: bool,
        /// Nanoseconds.
        #[prost(int64, tag = "8")]
        pub keepalive: i64,
        /// Nanoseconds.
        #[prost(int64, tag = "9")]
        pub timeout: i64,
        /// 0: the protocol's default.
        #[prost(int64, tag = "10")]
        pub protocol_port: i64,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct InitResponse {
        #[prost(string, tag = "1")]
        pub id: ::prost::alloc::string::String,
        #[prost(uint32, tag = "2")]
        pub max_size: u32,
        #[prost(string, tag = "3")]
        pub version: ::prost::alloc::string::String,
        #[prost(string, tag = "4")]
        pub build_info: ::prost::alloc::string::String,
        #[prost(string, repeated, tag = "5")]
        pub capabilities: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct UpdateResponse {
        #[prost(string, tag = "1")]
        pub instance: ::prost::alloc::string::String,
        #[prost(enumeration = "State", tag = "2")]
        pub state: i32,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct IncreaseRequest {
        #[prost(uint32, tag = "1")]
        pub n: u32,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct IncreaseResponse {
        #[prost(uint32, tag = "1")]
        pub succeeded: u32,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DecreaseRequest {
        #[prost(string, repeated, tag = "1")]
        pub instances: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct DecreaseResponse {
        #[prost(string, repeated, tag = "1")]
        pub succeeded: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct ConnectInfoRequest {
        #[prost(string, tag = "1")]
        pub instance: ::prost::alloc::string::String,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    #[prost(skip_debug)]
    pub struct ConnectInfoResponse {
        #[prost(message, optional, tag = "1")]
        pub connector: ::core::option::Option<ConnectorConfig>,
        #[prost(string, tag = "2")]
        pub external_addr: ::prost::alloc::string::String,
        #[prost(string, tag = "3")]
        pub internal_addr: ::prost::alloc::string::String,
        /// Unix seconds; 0: never.
        #[prost(int64, tag = "4")]
        pub expires: i64,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct HeartbeatRequest {
        #[prost(string, tag = "1")]
        pub instance: ::prost::alloc::string::String,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct SuspendRequest {
        #[prost(string, repeated, tag = "1")]
        pub instances: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct SuspendResponse {
        #[prost(string, repeated, tag = "1")]
        pub succeeded: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct ResumeRequest {
        #[prost(string, repeated, tag = "1")]
        pub instances: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct ResumeResponse {
        #[prost(string, repeated, tag = "1")]
        pub succeeded: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    }
    /// An instance's state.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
    #[repr(i32)]
    pub enum State {
        Creating = 0,
        Running = 1,
        Deleting = 2,
        Deleted = 3,
        Timeout = 4,
        Suspending = 5,
        Suspended = 6,
        Resuming = 7,
    }
    impl State {
        /// String value of the enum field names used in the ProtoBuf definition.
        ///
        /// The values are not transformed in any way and thus are considered stable
        /// (if the ProtoBuf definition does not change) and safe for programmatic use.
        pub fn as_str_name(&self) -> &'static str {
            match self {
                Self::Creating => "CREATING",
                Self::Running => "RUNNING",
                Self::Deleting => "DELETING",
                Self::Deleted => "DELETED",
                Self::Timeout => "TIMEOUT",
                Self::Suspending => "SUSPENDING",
                Self::Suspended => "SUSPENDED",
                Self::Resuming => "RESUMING",
            }
        }
        /// Creates an enum from field names used in the ProtoBuf definition.
        pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
            match value {
                "CREATING" => Some(Self::Creating),
                "RUNNING" => Some(Self::Running),
                "DELETING" => Some(Self::Deleting),
                "DELETED" => Some(Self::Deleted),
                "TIMEOUT" => Some(Self::Timeout),
                "SUSPENDING" => Some(Self::Suspending),
                "SUSPENDED" => Some(Self::Suspended),
                "RESUMING" => Some(Self::Resuming),
                _ => None,
            }
        }
    }
}

pub mod go_plugin {
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct StdioData {
        #[prost(enumeration = "stdio_data::Channel", tag = "1")]
        pub channel: i32,
        #[prost(bytes = "vec", tag = "2")]
        pub data: ::prost::alloc::vec::Vec<u8>,
    }
    /// Nested message and enum types in `StdioData`.
    pub mod stdio_data {
        #[derive(
            Clone,
            Copy,
            Debug,
            PartialEq,
            Eq,
            Hash,
            PartialOrd,
            Ord,
            ::prost::Enumeration
        )]
        #[repr(i32)]
        pub enum Channel {
            Invalid = 0,
            Stdout = 1,
            Stderr = 2,
        }
        impl Channel {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Invalid => "INVALID",
                    Self::Stdout => "STDOUT",
                    Self::Stderr => "STDERR",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "INVALID" => Some(Self::Invalid),
                    "STDOUT" => Some(Self::Stdout),
                    "STDERR" => Some(Self::Stderr),
                    _ => None,
                }
            }
        }
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct ConnInfo {
        #[prost(uint32, tag = "1")]
        pub service_id: u32,
        #[prost(string, tag = "2")]
        pub network: ::prost::alloc::string::String,
        #[prost(string, tag = "3")]
        pub address: ::prost::alloc::string::String,
        #[prost(message, optional, tag = "4")]
        pub knock: ::core::option::Option<conn_info::Knock>,
    }
    /// Nested message and enum types in `ConnInfo`.
    pub mod conn_info {
        #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
        pub struct Knock {
            #[prost(bool, tag = "1")]
            pub knock: bool,
            #[prost(bool, tag = "2")]
            pub ack: bool,
            #[prost(string, tag = "3")]
            pub error: ::prost::alloc::string::String,
        }
    }
}

pub mod health {
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct HealthCheckRequest {
        /// Empty: the whole server.
        #[prost(string, tag = "1")]
        pub service: ::prost::alloc::string::String,
    }
    #[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct HealthCheckResponse {
        #[prost(enumeration = "health_check_response::ServingStatus", tag = "1")]
        pub status: i32,
    }
    /// Nested message and enum types in `HealthCheckResponse`.
    pub mod health_check_response {
        #[derive(
            Clone,
            Copy,
            Debug,
            PartialEq,
            Eq,
            Hash,
            PartialOrd,
            Ord,
            ::prost::Enumeration
        )]
        #[repr(i32)]
        pub enum ServingStatus {
            Unknown = 0,
            Serving = 1,
            NotServing = 2,
            /// In answers to Watch only.
            ServiceUnknown = 3,
        }
        impl ServingStatus {
            /// String value of the enum field names used in the ProtoBuf definition.
            ///
            /// The values are not transformed in any way and thus are considered stable
            /// (if the ProtoBuf definition does not change) and safe for programmatic use.
            pub fn as_str_name(&self) -> &'static str {
                match self {
                    Self::Unknown => "UNKNOWN",
                    Self::Serving => "SERVING",
                    Self::NotServing => "NOT_SERVING",
                    Self::ServiceUnknown => "SERVICE_UNKNOWN",
                }
            }
            /// Creates an enum from field names used in the ProtoBuf definition.
            pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
                match value {
                    "UNKNOWN" => Some(Self::Unknown),
                    "SERVING" => Some(Self::Serving),
                    "NOT_SERVING" => Some(Self::NotServing),
                    "SERVICE_UNKNOWN" => Some(Self::ServiceUnknown),
                    _ => None,
                }
            }
        }
    }
}

pub mod status {
    #[derive(Clone, PartialEq, ::prost::Message)]
    pub struct Status {
        #[prost(int32, tag = "1")]
        pub code: i32,
        #[prost(string, tag = "2")]
        pub message: ::prost::alloc::string::String,
        /// google.protobuf.Any.
        #[prost(message, repeated, tag = "3")]
        pub details: ::prost::alloc::vec::Vec<Detail>,
    }
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
    pub struct Detail {
        /// type.googleapis.com/ and the full name of the message.
        #[prost(string, tag = "1")]
        pub type_url: ::prost::alloc::string::String,
        #[prost(bytes = "vec", tag = "2")]
        pub value: ::prost::alloc::vec::Vec<u8>,
    }
}
