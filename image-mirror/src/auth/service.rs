//! The token service: `GET /token` (distribution spec/auth/token.md) and `POST /token` (spec/auth/oauth.md).

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use super::token::{Claims, Purpose};
use super::{Auth, Caller, now, unauthorized};
use crate::door::Client;
use crate::error::RegistryError;
use crate::query::{parameter, parameters};
use crate::registry::{Answer, json};

/// A layer may take longer than this: a token is looked at when a request begins.
const ACCESS_SECONDS: u64 = 300;
/// For `docker login`, instead of the password.
const REFRESH_SECONDS: u64 = 90 * 86_400;
const FORM_LIMIT_BYTES: usize = 64 << 10;
/// Of all scopes of a token: it travels in a header.
const SCOPE_LIMIT_BYTES: usize = 4096;

impl Auth {
    /// Answers `/token`.
    pub(crate) async fn give_token(&self, request: Request<Body>, client: &Client) -> Answer {
        let (parts, body) = request.into_parts();
        match parts.method {
            Method::GET => {
                let caller = self.credential(&parts.headers, client).await?;
                if caller.scope.is_some() {
                    return Err(unauthorized("a token is no credential here", String::new()));
                }
                let query = parts.uri.query().unwrap_or_default().replace('+', "%20");
                let offline = parameter(&query, "offline_token").as_deref() == Some("true");
                self.tokens(caller.user, &query, offline)
            }
            Method::POST => {
                let form = to_bytes(body, FORM_LIMIT_BYTES).await;
                let form = form.map_err(|error| invalid(format!("the form cannot be read: {error}")))?;
                // In a form a plus sign is a space.
                let form = String::from_utf8_lossy(&form).replace('+', "%20");
                let caller = self.granted(&form, client).await?;
                let offline = parameter(&form, "access_type").as_deref() == Some("offline");
                self.tokens(caller.user, &form, offline)
            }
            method => Err(RegistryError::unsupported(format!("{method} is not possible here"))),
        }
    }

    /// Who a form is from.
    async fn granted(&self, form: &str, client: &Client) -> Result<Caller, RegistryError> {
        let field = |name: &str| parameter(form, name).unwrap_or_default();
        match field("grant_type").as_str() {
            "password" => self.log_in(&field("username"), &field("password"), client).await,
            "refresh_token" => {
                let claims = self.signer.verify(&field("refresh_token"), now());
                let claims = claims.filter(|claims| claims.purpose == Purpose::Refresh);
                let user = claims.and_then(|claims| self.still(&claims.sub?, claims.password.as_deref()));
                let why = "the refresh token is damaged, has ended, or the user has another password now";
                let user = user.ok_or_else(|| self.refused(client, "", why, ""))?;
                Ok(Caller { user: Some(user), scope: None })
            }
            other => {
                Err(invalid(format!("grant_type {other:?} is not known: use password or refresh_token")))
            }
        }
    }

    fn tokens(&self, user: Option<Arc<str>>, fields: &str, offline: bool) -> Answer {
        let scope = parameters(fields, "scope").collect::<Vec<_>>().join(" ");
        if scope.len() > SCOPE_LIMIT_BYTES {
            return Err(invalid(format!("the scopes have more than {SCOPE_LIMIT_BYTES} bytes")));
        }
        let password = user.as_deref().and_then(|user| self.password(user));
        let claims = |purpose, seconds: u64, scope: &str| Claims {
            sub: user.as_deref().map(str::to_owned),
            exp: now() + seconds,
            purpose,
            password: password.clone(),
            scope: scope.to_owned(),
        };
        let sign = |claims: Claims| {
            self.signer.sign(&claims).map_err(|error| RegistryError::internal("make a token", error))
        };
        let token = sign(claims(Purpose::Access, ACCESS_SECONDS, &scope))?;
        let mut document = serde_json::json!({
            "token": token,
            "access_token": token,
            "scope": scope,
            "expires_in": ACCESS_SECONDS,
        });
        if offline && user.is_some() {
            document["refresh_token"] = sign(claims(Purpose::Refresh, REFRESH_SECONDS, ""))?.into();
        }
        let mut response: Response<Body> = json("application/json", &document);
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

fn invalid(message: String) -> RegistryError {
    RegistryError::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
}
