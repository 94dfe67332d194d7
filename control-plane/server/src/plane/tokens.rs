//! Tokens of the API: shown once, stored hashed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_api::limits::{MAX_LABEL_CHARS, MAX_TOKENS};
use casemate_api::token::{
    MadeToken, NewToken, Scope, TOKEN_BYTES, TOKEN_PREFIX, TokenList, TokenView,
};
use casemate_control_store::Change;
use casemate_trust::id::Digest;

use super::rows::TokenRow;
use super::{Actor, Plane, json, key, now};
use crate::fault::Fault;
use crate::keys::random;

impl Plane {
    /// The holder of a token, if the token is valid.
    pub(crate) fn authenticate(&self, token: &str) -> Option<Actor> {
        let held = self.held();
        // The lookup uses the hash, so that its duration reveals nothing about the token.
        let view = held.tokens.get(&Digest::of(token.as_bytes()))?;
        let is_live = view.expires.is_none_or(|expires| now() < expires);
        is_live.then(|| Actor::Token {
            id: view.id.clone(),
            label: view.label.clone(),
            scope: view.scope,
        })
    }

    /// Makes a token.
    pub(crate) async fn make_token(
        &self,
        actor: &Actor,
        new: NewToken,
    ) -> Result<MadeToken, Fault> {
        let is_text = new.label.chars().count() <= MAX_LABEL_CHARS
            && !new.label.chars().any(char::is_control);
        if !is_text || new.label.is_empty() {
            let message =
                format!("expected a label of 1 to {MAX_LABEL_CHARS} printable characters");
            return Err(Fault::bad_request(message));
        }
        if new.expires.is_some_and(|expires| expires <= now()) {
            return Err(Fault::bad_request("the token would have expired already"));
        }
        let writing = self.begin().await;
        if self.held().tokens.len() >= MAX_TOKENS {
            return Err(Fault::too_many("tokens", MAX_TOKENS));
        }
        if let Scope::Tenant(id) = new.scope
            && self
                .held()
                .judge
                .as_ref()
                .is_none_or(|judge| judge.tenant(&id).is_none())
        {
            return Err(Fault::not_found("tenant"));
        }
        let id = hex::encode(random::<8>()?);
        let token = format!(
            "{TOKEN_PREFIX}{}",
            URL_SAFE_NO_PAD.encode(random::<TOKEN_BYTES>()?)
        );
        let view = TokenView {
            id: id.clone(),
            scope: new.scope,
            label: new.label,
            created: now(),
            expires: new.expires,
        };
        let hash = Digest::of(token.as_bytes());
        let subject = format!("{id} ({}, {})", view.label, view.scope);
        let row = TokenRow { view, hash };
        let changes = vec![Change::put(key::token(&id), json(&row))];
        writing
            .commit(actor, "token.make", subject, vec![], changes)
            .await?;
        self.change(|held| held.tokens.insert(hash, row.view));
        Ok(MadeToken { id, token })
    }

    /// The client's own token.
    pub(crate) fn own_token(&self, actor: &Actor) -> Result<TokenView, Fault> {
        let held = self.held();
        let own = held.tokens.values().find(|view| match actor {
            Actor::Token { id, .. } => view.id == *id,
            _ => false,
        });
        own.cloned().ok_or_else(|| Fault::not_found("token"))
    }

    /// All tokens.
    pub(crate) fn tokens(&self) -> TokenList {
        let mut tokens: Vec<_> = self.held().tokens.values().cloned().collect();
        tokens.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
        TokenList { tokens }
    }

    /// Revokes a token.
    pub(crate) async fn delete_token(&self, actor: &Actor, id: &str) -> Result<(), Fault> {
        let writing = self.begin().await;
        let found = self
            .held()
            .tokens
            .iter()
            .find(|(_, view)| view.id == id)
            .map(|(hash, _)| *hash);
        let hash = found.ok_or_else(|| Fault::not_found("token"))?;
        let changes = vec![Change::delete(key::token(id))];
        writing
            .commit(actor, "token.delete", id, vec![], changes)
            .await?;
        self.change(|held| held.tokens.remove(&hash));
        Ok(())
    }
}
