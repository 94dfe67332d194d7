//! Codes of outgoing calls, as a function reads them in `error.code`; defined once, here.
//!
//! The vault and the worker name a code by its variant. The tenants' guide has its table from
//! [`CallCode::ALL`]. Tests compare the guide and the worker's scripts with it.

use crate::control::Failure;

macro_rules! codes {
    ($($(#[doc = $meaning:literal])+ $variant:ident, $name:literal, $failure:expr;)+) => {
        /// Why an outgoing call failed, or its answer broke off. The documentation of a variant is
        /// its row in the tenants' guide.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CallCode {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl CallCode {
            /// All codes, in the order of the guide.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name that the function reads.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The meaning, as the guide explains it.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($meaning),+).trim_ascii(),)+
                }
            }

            /// The failure that the caller sees when the function does not catch the error.
            pub fn failure(self) -> Failure {
                match self {
                    $(Self::$variant => $failure,)+
                }
            }
        }
    };
}

codes! {
    /// your release does not declare this host, method or path
    EgressDenied, "egress_denied", Failure::EgressDenied;
    /// the name leads only to addresses that are not public and that the operator has not allowed
    AddressDenied, "address_denied", Failure::EgressDenied;
    /// the operator's egress ceiling does not allow the host or port: ask the operator
    EgressCeiling, "egress_ceiling", Failure::Exception;
    /// no release could allow the call: the URL has no single meaning, the method is `CONNECT` or
    /// `TRACE`, or a header field cannot be sent
    CallInvalid, "call_invalid", Failure::Exception;
    /// the upstream answered with a part (206), and the credential does not declare `ranges`
    RangesUndeclared, "ranges_undeclared", Failure::Exception;
    /// your newest manifest no longer lists the release that is running
    ReleaseWithdrawn, "release_withdrawn", Failure::EgressDenied;
    /// the node has been without its control plane for longer than its lease
    CredentialLeaseExpired, "credential_lease_expired", Failure::LeaseExpired;
    /// your newest manifest does not list the secret for this node's pool, or no longer lists it
    /// since the call began
    CredentialWithdrawn, "credential_withdrawn", Failure::CredentialUnusable;
    /// manifest, tenant or pool key has expired: `casemate renew`, or ask the operator
    CredentialExpired, "credential_expired", Failure::CredentialUnusable;
    /// answers of this host held the secret three times within an hour: calls to the host are
    /// refused for an hour, see `casemate status`
    CredentialReflected, "credential_reflected", Failure::CredentialUnusable;
    /// your manifest demands freshness, which was not renewed in time, or this node does not have
    /// your newest manifest; see "Withdrawals that do not arrive"
    CredentialStale, "credential_stale", Failure::CredentialUnusable;
    /// the node's vault cannot open the secret: seal it again with `casemate secret put`
    CredentialUnopenable, "credential_unopenable", Failure::CredentialUnusable;
    /// the operator has revoked this node, which uses no credentials any more
    NodeRevoked, "node_revoked", Failure::CredentialUnusable;
    /// the node does not have the operator's newest list of revoked nodes, and uses no credentials
    /// until it has
    RevocationsMissing, "revocations_missing", Failure::CredentialUnusable;
    /// your tenant's share of this node's calls is used up, and none of them ended within ten
    /// seconds
    TooManyCalls, "too_many_calls", Failure::Exception;
    /// your functions have calls in flight to 64 hosts on this node, or all tenants together to
    /// 1,024
    TooManyUpstreams, "too_many_upstreams", Failure::Exception;
    /// the request has made as many outgoing calls as `subrequests` allows; each hop of a redirect
    /// counts
    SubrequestLimit, "subrequest_limit", Failure::Exception;
    /// there is no request: outgoing calls cannot be made from module level, or from a timer that
    /// was set there
    NoRequest, "no_request", Failure::Exception;
    /// the request that began the call, the body or the timer has ended: what belongs to a request
    /// ends with it. See "Promises across requests"
    RequestEnded, "request_ended", Failure::Exception;
    /// the call cannot be sent (it has too many headers), or the vault cut the answer's body off:
    /// the function's log says why (`upstream_timeout`, `credential_withdrawn`, ...)
    CallFailed, "call_failed", Failure::Exception;
    /// the node's vault ended during the call or in the middle of the answer's body, or is being
    /// started again: the call may or may not have reached the upstream
    VaultUnavailable, "vault_unavailable", Failure::Exception;
    /// the upstream's name cannot be resolved
    UpstreamDns, "upstream_dns", Failure::Exception;
    /// the upstream cannot be reached
    UpstreamUnreachable, "upstream_unreachable", Failure::Exception;
    /// the upstream's TLS fails: its certificate is not trusted, has expired, or names another host
    UpstreamTls, "upstream_tls", Failure::Exception;
    /// the call took longer than the release's `call_time_ms` (60 s unless set), answer included,
    /// or the upstream stalled
    UpstreamTimeout, "upstream_timeout", Failure::Exception;
    /// the upstream broke the connection or the protocol
    UpstreamFailed, "upstream_failed", Failure::Exception;
    /// the answer to a call with a credential has a content encoding other than gzip, or the gzip
    /// data are damaged or decode to too many bytes
    UpstreamEncoding, "upstream_encoding", Failure::Exception;
    /// the answer has a transfer encoding other than `chunked`
    UpstreamTransferEncoding, "upstream_transfer_encoding", Failure::Exception;
    /// the answer has so many encodings on top of each other that it cannot be searched for the
    /// secret
    UpstreamUnsearchable, "upstream_unsearchable", Failure::Exception;
}

impl CallCode {
    /// Whether the code is a refusal by policy: of the release, the manifest, the operator, or the
    /// node's own rules and shares. The same call gets the same answer until one of these changes.
    /// Otherwise something has failed, and a later call may succeed.
    pub const fn is_policy(self) -> bool {
        match self {
            Self::EgressDenied
            | Self::AddressDenied
            | Self::EgressCeiling
            | Self::CallInvalid
            | Self::RangesUndeclared
            | Self::ReleaseWithdrawn
            | Self::CredentialLeaseExpired
            | Self::CredentialWithdrawn
            | Self::CredentialExpired
            | Self::CredentialReflected
            | Self::CredentialStale
            | Self::NodeRevoked
            | Self::RevocationsMissing
            | Self::TooManyCalls
            | Self::TooManyUpstreams
            | Self::SubrequestLimit
            | Self::NoRequest
            | Self::RequestEnded => true,
            Self::CredentialUnopenable
            | Self::CallFailed
            | Self::VaultUnavailable
            | Self::UpstreamDns
            | Self::UpstreamUnreachable
            | Self::UpstreamTls
            | Self::UpstreamTimeout
            | Self::UpstreamFailed
            | Self::UpstreamEncoding
            | Self::UpstreamTransferEncoding
            | Self::UpstreamUnsearchable => false,
        }
    }

    /// The code with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_name_and_explained() {
        for code in CallCode::ALL {
            assert_eq!(CallCode::parse(code.name()), Some(*code));
            let snake = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(code.name().bytes().all(snake), "{code:?}");
            let meaning = code.meaning();
            assert!(meaning.len() > 20 && !meaning.contains("  "), "{meaning}");
        }
        assert_eq!(CallCode::parse("nothing"), None);
    }

    #[test]
    fn failures_on_the_way_to_an_upstream_are_not_policy() {
        for code in CallCode::ALL {
            if code.name().starts_with("upstream_") {
                assert!(!code.is_policy(), "{code:?}");
            }
            if code.failure() == Failure::EgressDenied {
                assert!(code.is_policy(), "{code:?}");
            }
        }
    }

    #[test]
    fn only_what_the_release_denies_is_egress_denied() {
        let denied = CallCode::ALL
            .iter()
            .filter(|code| code.failure() == Failure::EgressDenied)
            .map(|code| code.name());
        let expected = ["egress_denied", "address_denied", "release_withdrawn"];
        assert!(denied.eq(expected));
        let lease = CallCode::CredentialLeaseExpired.failure();
        assert_eq!(lease.code(), CallCode::CredentialLeaseExpired.name());
    }
}
