//! Options of roles and databases: as a spec writes them, and as the catalog holds them.
//!
//! Typed, so that what is declared can be compared with what is there. Options this program does not know are
//! kept as they came, for the statement that creates the object and for each that sets a role's password (as the
//! original does); what cannot be compared is never a difference of its own.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use thiserror::Error;

use super::quote::{self, QuoteError, identifier, literal};
use crate::spec::document::GenericOption;

/// An attribute of roles that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flag {
    /// `SUPERUSER`
    Superuser,
    /// `INHERIT`
    Inherit,
    /// `CREATEROLE`
    CreateRole,
    /// `CREATEDB`
    CreateDb,
    /// `BYPASSRLS`
    BypassRls,
    /// `REPLICATION`
    Replication,
}

impl Flag {
    /// All, in the order in which statements list them. The reader's bits are in this order too.
    pub const ALL: [Self; 6] = [
        Self::Superuser,
        Self::Inherit,
        Self::CreateRole,
        Self::CreateDb,
        Self::BypassRls,
        Self::Replication,
    ];

    /// The word in statements; with `NO` in front it takes the attribute away.
    pub fn word(self) -> &'static str {
        match self {
            Self::Superuser => "SUPERUSER",
            Self::Inherit => "INHERIT",
            Self::CreateRole => "CREATEROLE",
            Self::CreateDb => "CREATEDB",
            Self::BypassRls => "BYPASSRLS",
            Self::Replication => "REPLICATION",
        }
    }

    fn of(word: &str) -> Option<(Self, bool)> {
        Self::ALL.into_iter().find_map(|flag| {
            if word.eq_ignore_ascii_case(flag.word()) {
                return Some((flag, true));
            }
            let negated = word.get(..2).is_some_and(|no| no.eq_ignore_ascii_case("NO"));
            (negated && word[2..].eq_ignore_ascii_case(flag.word())).then_some((flag, false))
        })
    }
}

/// Why an option cannot be declared. The text completes a sentence that names object and option.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// `CREATEDB true` is no SQL.
    #[error("takes no value")]
    NoValueTaken,
    /// `CONNECTION LIMIT` alone is no SQL.
    #[error("needs a value")]
    ValueNeeded,
    /// A connection limit that is none.
    #[error("needs a whole number, -1 for no limit")]
    NotANumber,
    /// `IS_TEMPLATE maybe`
    #[error("needs `true` or `false`")]
    NotABoolean,
    /// Given twice, or once with and once without `NO`.
    #[error("is given twice")]
    Repeated,
    /// What the spec says elsewhere; PostgreSQL refuses options that stand twice.
    #[error(
        "is not an option of its own: roles of a spec can log in, with the password in `encrypted_password`"
    )]
    Login,
    /// The owner is a field of its own.
    #[error("is not an option of its own: it is the field `owner`")]
    Owner,
    /// It cannot be written.
    #[error(transparent)]
    Quote(#[from] QuoteError),
}

/// What a list of options was found to say, or the name of the option that is wrong and how.
type Parsed<T> = Result<T, (String, OptionError)>;

/// Attributes of a role. What is `None` is not declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleAttributes {
    /// In the order of [`Flag::ALL`].
    flags: [Option<bool>; Flag::ALL.len()],
    /// Sessions at the same time; -1 for any number.
    pub connection_limit: Option<i32>,
    /// When the password ends, in a form PostgreSQL reads.
    pub valid_until: Option<String>,
    /// Roles it is a member of.
    pub member_of: BTreeSet<String>,
    /// Options this program does not know.
    pub others: Vec<GenericOption>,
}

impl RoleAttributes {
    /// Reads the options of a spec's role.
    ///
    /// # Errors
    /// The name of the option, and what is wrong with it.
    pub fn parse(options: &[GenericOption]) -> Parsed<Self> {
        let mut attributes = Self::default();
        for option in options {
            attributes.take(option).map_err(|fault| (option.name.clone(), fault))?;
        }
        Ok(attributes)
    }

    fn take(&mut self, option: &GenericOption) -> Result<(), OptionError> {
        let name = quote::option_name(&option.name)?;
        if let Some((flag, on)) = Flag::of(name) {
            if option.value.is_some() {
                return Err(OptionError::NoValueTaken);
            }
            return once(&mut self.flags[flag as usize], on);
        }
        match name.to_ascii_uppercase().as_str() {
            // Said anyway.
            "LOGIN" if option.value.is_none() => Ok(()),
            "LOGIN" | "NOLOGIN" | "PASSWORD" | "ENCRYPTED PASSWORD" | "UNENCRYPTED PASSWORD" => {
                Err(OptionError::Login)
            }
            "CONNECTION LIMIT" => once(&mut self.connection_limit, number(option)?),
            "VALID UNTIL" => once(&mut self.valid_until, text(option)?),
            "IN ROLE" | "IN GROUP" => {
                if self.member_of.insert(name_value(option)?) {
                    Ok(())
                } else {
                    Err(OptionError::Repeated)
                }
            }
            _ => {
                quote::options(std::slice::from_ref(option)).map_err(|(_, fault)| fault)?;
                self.others.push(option.clone());
                Ok(())
            }
        }
    }

    /// With this attribute on, unless the opposite is declared.
    #[must_use]
    pub fn or_on(mut self, flag: Flag) -> Self {
        self.flags[flag as usize].get_or_insert(true);
        self
    }

    /// Notes what a role has.
    pub fn set(&mut self, flag: Flag, on: bool) {
        self.flags[flag as usize] = Some(on);
    }

    /// What of these is not so with `existing`, for a role that is to keep the rest. Memberships and unknown
    /// options are left out. `instant` gives the form in which the catalog shows a time.
    #[must_use]
    pub fn beyond(&self, existing: &Self, instant: impl Fn(&str) -> Option<String>) -> Self {
        let mut differing = Self::default();
        for flag in Flag::ALL {
            let (wanted, present) = (self.flags[flag as usize], existing.flags[flag as usize]);
            differing.flags[flag as usize] = wanted.filter(|_| wanted != present);
        }
        differing.connection_limit =
            self.connection_limit.filter(|_| self.connection_limit != existing.connection_limit);
        differing.valid_until = self
            .valid_until
            .clone()
            .filter(|wanted| instant(wanted).is_none() || instant(wanted) != existing.valid_until);
        differing
    }

    /// The unknown options, less those which PostgreSQL takes in `CREATE ROLE` and not in `ALTER ROLE`.
    pub fn others_of_present(&self) -> Vec<GenericOption> {
        const AT_CREATION: [&str; 4] = ["ADMIN", "ROLE", "USER", "SYSID"];
        let only_then = |option: &&GenericOption| {
            AT_CREATION.iter().any(|name| option.name.trim().eq_ignore_ascii_case(name))
        };
        self.others.iter().filter(|option| !only_then(option)).cloned().collect()
    }

    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The options of a statement, each after a space, without memberships.
    pub(super) fn sql(&self) -> Result<String, (String, QuoteError)> {
        let mut sql = String::new();
        for flag in Flag::ALL {
            if let Some(on) = self.flags[flag as usize] {
                // Writing to a String cannot fail, here and below.
                let _ = write!(sql, " {}{}", if on { "" } else { "NO" }, flag.word());
            }
        }
        if let Some(limit) = self.connection_limit {
            let _ = write!(sql, " CONNECTION LIMIT {limit}");
        }
        if let Some(until) = &self.valid_until {
            let _ = write!(
                sql,
                " VALID UNTIL {}",
                literal(until).map_err(|fault| ("VALID UNTIL".to_owned(), fault))?
            );
        }
        sql.push_str(&quote::options(&self.others)?);
        Ok(sql)
    }

    /// ` IN ROLE "a", "b"`, or nothing.
    pub(super) fn membership_sql(&self) -> Result<String, (String, QuoteError)> {
        if self.member_of.is_empty() {
            return Ok(String::new());
        }
        let names = self.member_of.iter().map(|name| identifier(name).map_err(|fault| (name.clone(), fault)));
        Ok(format!(" IN ROLE {}", names.collect::<Result<Vec<_>, _>>()?.join(", ")))
    }
}

/// Options of a database that can still be changed when it exists. What is `None` is not declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseAttributes {
    /// Sessions at the same time; -1 for any number.
    pub connection_limit: Option<i32>,
    /// Whether sessions are allowed at all.
    pub allow_connections: Option<bool>,
    /// Whether it may be copied by others than its owner, and not be dropped.
    pub is_template: Option<bool>,
}

impl DatabaseAttributes {
    /// Reads the options of a spec's database. All of them can be written, and those that can be changed later
    /// are picked out.
    ///
    /// # Errors
    /// The name of the option, and what is wrong with it.
    pub fn parse(options: &[GenericOption]) -> Parsed<Self> {
        let mut attributes = Self::default();
        for option in options {
            attributes.take(option).map_err(|fault| (option.name.clone(), fault))?;
        }
        Ok(attributes)
    }

    fn take(&mut self, option: &GenericOption) -> Result<(), OptionError> {
        quote::options(std::slice::from_ref(option)).map_err(|(_, fault)| fault)?;
        match option.name.to_ascii_uppercase().as_str() {
            "OWNER" => Err(OptionError::Owner),
            "CONNECTION LIMIT" | "CONNECTION_LIMIT" => once(&mut self.connection_limit, number(option)?),
            "ALLOW_CONNECTIONS" => once(&mut self.allow_connections, boolean(option)?),
            "IS_TEMPLATE" => once(&mut self.is_template, boolean(option)?),
            _ => Ok(()),
        }
    }

    /// What of these is not so with `existing`.
    #[must_use]
    pub fn beyond(&self, existing: &Self) -> Self {
        Self {
            connection_limit: self
                .connection_limit
                .filter(|_| self.connection_limit != existing.connection_limit),
            allow_connections: self
                .allow_connections
                .filter(|_| self.allow_connections != existing.allow_connections),
            is_template: self.is_template.filter(|_| self.is_template != existing.is_template),
        }
    }

    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The options of `ALTER DATABASE`, each after a space.
    pub(super) fn sql(&self) -> String {
        let mut sql = String::new();
        // Writing to a String cannot fail.
        if let Some(limit) = self.connection_limit {
            let _ = write!(sql, " CONNECTION LIMIT {limit}");
        }
        for (word, value) in
            [("ALLOW_CONNECTIONS", self.allow_connections), ("IS_TEMPLATE", self.is_template)]
        {
            if let Some(value) = value {
                let _ = write!(sql, " {word} {value}");
            }
        }
        sql
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), OptionError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(OptionError::Repeated),
    }
}

/// The value as text, whichever of the two forms of the format it has.
fn text(option: &GenericOption) -> Result<String, OptionError> {
    let value = option.value.as_deref().ok_or(OptionError::ValueNeeded)?;
    if option.vartype == "string" {
        literal(value)?;
        return Ok(value.to_owned());
    }
    let value = quote::raw_value(value)?;
    Ok(value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or(value).to_owned())
}

fn number(option: &GenericOption) -> Result<i32, OptionError> {
    let number: i32 = text(option)?.parse().map_err(|_| OptionError::NotANumber)?;
    if number < -1 || option.vartype == "string" { Err(OptionError::NotANumber) } else { Ok(number) }
}

fn boolean(option: &GenericOption) -> Result<bool, OptionError> {
    match text(option)?.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        _ => Err(OptionError::NotABoolean),
    }
}

/// A name: in double quotes as it stands, otherwise in lower case, as the server reads it.
fn name_value(option: &GenericOption) -> Result<String, OptionError> {
    let value = option.value.as_deref().ok_or(OptionError::ValueNeeded)?;
    let value = quote::raw_value(value)?;
    let name = match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => quoted.to_owned(),
        None => value.to_ascii_lowercase(),
    };
    identifier(&name)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(name: &str, value: Option<&str>, vartype: &str) -> GenericOption {
        GenericOption { name: name.to_owned(), value: value.map(str::to_owned), vartype: vartype.to_owned() }
    }

    fn role(options: &[GenericOption]) -> Parsed<RoleAttributes> {
        RoleAttributes::parse(options)
    }

    #[test]
    fn what_is_declared_wins_over_what_is_usual() {
        let declared =
            role(&[option("nocreatedb", None, "bool"), option("CONNECTION LIMIT", Some("7"), "integer")]);
        let attributes = declared.unwrap().or_on(Flag::CreateDb).or_on(Flag::Inherit);
        assert_eq!(attributes.sql().unwrap(), " INHERIT NOCREATEDB CONNECTION LIMIT 7");
    }

    #[test]
    fn only_what_differs_is_left() {
        let wanted = role(&[
            option("CREATEDB", None, "bool"),
            option("NOREPLICATION", None, "bool"),
            option("VALID UNTIL", Some("2030-01-01"), "string"),
            option("UNHEARD OF", Some("x"), "enum"),
        ])
        .unwrap();
        let mut existing =
            RoleAttributes { valid_until: Some("2030-01-01 00:00:00+00".to_owned()), ..Default::default() };
        existing.set(Flag::CreateDb, false);
        existing.set(Flag::Replication, false);
        let canonical = |_: &str| Some("2030-01-01 00:00:00+00".to_owned());
        assert_eq!(wanted.beyond(&existing, canonical).sql().unwrap(), " CREATEDB");
        existing.set(Flag::CreateDb, true);
        existing.valid_until = None;
        assert_eq!(wanted.beyond(&existing, canonical).sql().unwrap(), " VALID UNTIL '2030-01-01'");
        existing.valid_until = canonical("");
        assert!(wanted.beyond(&existing, canonical).is_empty());
    }

    #[test]
    fn memberships_are_names() {
        let member =
            role(&[option("IN ROLE", Some("Readers"), "enum"), option("in group", Some("\"Big One\""), "x")]);
        assert_eq!(member.unwrap().membership_sql().unwrap(), " IN ROLE \"Big One\", \"readers\"");
    }

    #[test]
    fn faults_name_the_option() {
        for (name, value, vartype, fault) in [
            ("CREATEDB", Some("true"), "bool", OptionError::NoValueTaken),
            ("CONNECTION LIMIT", None, "integer", OptionError::ValueNeeded),
            ("CONNECTION LIMIT", Some("many"), "integer", OptionError::NotANumber),
            ("CONNECTION LIMIT", Some("-2"), "integer", OptionError::NotANumber),
            ("CONNECTION LIMIT", Some("7"), "string", OptionError::NotANumber),
            ("NOLOGIN", None, "bool", OptionError::Login),
            ("password", Some("x"), "string", OptionError::Login),
            ("A;B", None, "bool", OptionError::Quote(QuoteError::NotAToken)),
            ("TABLESPACE", Some("x; DROP ROLE y"), "enum", OptionError::Quote(QuoteError::NotAToken)),
        ] {
            assert_eq!(role(&[option(name, value, vartype)]), Err((name.to_owned(), fault)));
        }
        let twice = [option("CREATEDB", None, "bool"), option("NOCREATEDB", None, "bool")];
        assert_eq!(role(&twice), Err(("NOCREATEDB".to_owned(), OptionError::Repeated)));
        let owner = [option("OWNER", Some("x"), "enum")];
        assert_eq!(DatabaseAttributes::parse(&owner), Err(("OWNER".to_owned(), OptionError::Owner)));
        let template = [option("IS_TEMPLATE", Some("maybe"), "bool")];
        assert_eq!(
            DatabaseAttributes::parse(&template),
            Err(("IS_TEMPLATE".to_owned(), OptionError::NotABoolean))
        );
    }

    #[test]
    fn databases_are_altered_only_where_they_differ() {
        let wanted = DatabaseAttributes::parse(&[
            option("LC_COLLATE", Some("C"), "string"),
            option("CONNECTION LIMIT", Some("5"), "integer"),
            option("IS_TEMPLATE", Some("true"), "bool"),
        ])
        .unwrap();
        let mut existing = DatabaseAttributes {
            connection_limit: Some(-1),
            allow_connections: Some(true),
            is_template: Some(true),
        };
        assert_eq!(wanted.beyond(&existing).sql(), " CONNECTION LIMIT 5");
        existing.connection_limit = Some(5);
        assert!(wanted.beyond(&existing).is_empty());
    }
}
