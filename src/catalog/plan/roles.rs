//! Roles: the privileged one, renames, those the spec lists, and those it deletes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::deltas::{rename_target, reserved};
use super::error::{Kind, PlanError};
use super::verifier::{is_md5, verifier};
use super::{Planner, RoleState};
use crate::catalog::attributes::{Flag, RoleAttributes};
use crate::catalog::step::{Password, Step};

/// What makes the privileged role one.
const PRIVILEGES: [Flag; 4] = [Flag::CreateRole, Flag::CreateDb, Flag::BypassRls, Flag::Replication];

/// The roles the privileged role is a member of from the start; migrations add more.
const PRIVILEGED_IN: [&str; 2] = ["pg_read_all_data", "pg_write_all_data"];

impl<'a> Planner<'a> {
    /// The role whose members the spec's roles become. One that is there is mended.
    pub(super) fn privileged_role(&mut self) {
        let name = &self.options.privileged_role;
        let Some((_, now)) = self.roles.entry(name).or_default().now else {
            self.steps.push(Step::CreatePrivilegedRole { name: name.clone() });
            return;
        };
        let needed = PRIVILEGES.into_iter().fold(RoleAttributes::default(), RoleAttributes::or_on);
        let attributes = needed.beyond(&now.attributes, |_| None);
        if !attributes.is_empty() {
            let (name, password) = (name.clone(), Password::Keep);
            self.steps.push(Step::AlterRole { name, attributes, password });
        }
        for group in PRIVILEGED_IN {
            if !self.is_member(name, group) {
                self.steps.push(Step::GrantRole { role: group.to_owned(), member: name.clone() });
            }
        }
    }

    pub(super) fn rename_roles(&mut self) -> Result<(), PlanError> {
        for (at, op) in self.deltas.iter().enumerate().filter(|(_, op)| op.action == "rename_role") {
            let wanted = |name: &str| self.wanted_roles.contains_key(name);
            let exists = |name: &str| self.roles.contains_key(name);
            let Some(to) = rename_target(Kind::Role, self.deltas, at, wanted, exists)? else { continue };
            self.protect_role("rename", &op.name)?;
            reserved(&op.name)?;
            reserved(to)?;
            if let Some(mut role) = self.roles.remove(op.name.as_str()) {
                // An MD5 digest is salted with the name, so the server forgets it with the rename.
                role.verifier = role.verifier.filter(|verifier| !is_md5(verifier));
                self.roles.insert(to, role);
            }
            for database in self.databases.values_mut().filter(|database| database.owner == op.name) {
                to.clone_into(&mut database.owner);
            }
            self.steps.push(Step::RenameRole { from: op.name.clone(), to: to.to_owned() });
        }
        Ok(())
    }

    /// The listed roles. What a role has besides what its entry declares is left to it: others may have made it,
    /// or changed it.
    pub(super) fn roles(&mut self) -> Result<(), PlanError> {
        let (mut grants, mut joined) = (Vec::new(), Vec::new());
        let nothing = RoleAttributes::default();
        for (&name, &role) in &self.wanted_roles {
            if self.doomed.contains(name) {
                continue;
            }
            let verifier = verifier(role)?;
            let options = role.options.as_deref().unwrap_or_default();
            let declared = RoleAttributes::parse(options).map_err(|(option, fault)| PlanError::Option {
                kind: Kind::Role,
                name: role.name.clone(),
                option,
                fault,
            })?;
            if let Some(group) = declared.member_of.iter().find(|group| self.doomed.contains(group.as_str()))
            {
                return Err(PlanError::GroupDeleted { role: group.clone(), member: role.name.clone() });
            }
            let Some(&present) = self.roles.get(name) else {
                self.roles.insert(name, RoleState::default());
                let name = role.name.clone();
                reserved(&name)?;
                let mut attributes = declared;
                // One that is known to an identity provider only.
                if !self.jwt_roles.contains(name.as_str()) {
                    let usual = [Flag::Inherit].into_iter().chain(PRIVILEGES);
                    attributes = usual.fold(attributes, RoleAttributes::or_on);
                    attributes.member_of.insert(self.options.privileged_role.clone());
                }
                joined.extend(attributes.member_of.iter().map(|group| (group.clone(), name.clone())));
                // Groups may be listed later than their members.
                let later: Vec<String> = attributes
                    .member_of
                    .iter()
                    .filter(|group| !self.roles.contains_key(group.as_str()))
                    .cloned()
                    .collect();
                for group in later {
                    attributes.member_of.remove(&group);
                    grants.push((group, name.clone()));
                }
                let verifier = verifier.map(Cow::into_owned);
                self.steps.push(Step::CreateRole { name, attributes, verifier });
                continue;
            };
            let instant = |text: &str| self.existing.instants.get(text).cloned();
            let now = present.now.map_or(&nothing, |(_, role)| &role.attributes);
            let mut attributes = declared.beyond(now, instant);
            let password = match present.verifier == verifier.as_deref() {
                true => Password::Keep,
                false => {
                    // What cannot be compared is set on this occasion, as the original does.
                    attributes.others = declared.others_of_present();
                    Password::Set(verifier.map(Cow::into_owned))
                }
            };
            let missing = declared.member_of.iter().filter(|group| !self.is_member(name, group));
            grants.extend(missing.map(|group| (group.clone(), role.name.clone())));
            if password != Password::Keep || !attributes.is_empty() {
                reserved(name)?;
                self.steps.push(Step::AlterRole { name: role.name.clone(), attributes, password });
            }
        }
        for (role, member) in grants {
            if !self.roles.contains_key(role.as_str()) {
                return Err(PlanError::GroupMissing { role, member });
            }
            joined.push((role.clone(), member.clone()));
            self.steps.push(Step::GrantRole { role, member });
        }
        self.check_circles(&joined)
    }

    /// Refuses new memberships, group and member, by which a role would be a member of itself.
    fn check_circles(&self, joined: &[(String, String)]) -> Result<(), PlanError> {
        if joined.is_empty() {
            return Ok(());
        }
        let future = self.roles.iter().filter_map(|(name, role)| Some((role.now?.0, *name)));
        let future: BTreeMap<&str, &str> = future.collect();
        let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (group, members) in &self.existing.members {
            let Some(group) = future.get(group.as_str()).copied() else { continue };
            for member in members.iter().filter_map(|member| future.get(member.as_str()).copied()) {
                groups.entry(member).or_default().insert(group);
            }
        }
        for (group, member) in joined {
            groups.entry(member).or_default().insert(group);
        }
        for (group, member) in joined {
            let (mut seen, mut next) = (BTreeSet::from([group.as_str()]), vec![group.as_str()]);
            while let Some(role) = next.pop() {
                if role == member {
                    let (role, member) = (group.clone(), member.clone());
                    return Err(PlanError::MembershipCircle { role, member });
                }
                let above = groups.get(role).into_iter().flatten().copied();
                next.extend(above.filter(|group| seen.insert(group)));
            }
        }
        Ok(())
    }

    /// Roles that are to go, and are there.
    pub(super) fn departing(&self) -> Vec<&str> {
        self.doomed.iter().copied().filter(|role| self.roles.contains_key(*role)).collect()
    }

    pub(super) fn drop_roles(&mut self) {
        let steps: Vec<Step> =
            self.departing().into_iter().map(|role| Step::DropRole { name: role.to_owned() }).collect();
        self.steps.extend(steps);
    }

    /// The name which a role has now, by the one it will have. Nothing for one that is not there yet.
    pub(super) fn present_name(&self, role: &str) -> Option<&'a str> {
        self.roles.get(role)?.now.map(|(name, _)| name)
    }

    /// Whether a role is a member of another now, both by the names they will have.
    fn is_member(&self, name: &str, group: &str) -> bool {
        let (Some(name), Some(group)) = (self.present_name(name), self.present_name(group)) else {
            return false;
        };
        self.existing.members.get(group).is_some_and(|members| members.contains(name))
    }
}
