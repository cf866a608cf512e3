//! Which function goes where.

use std::collections::{BTreeMap, BTreeSet};

use walrus::ir::{Visitor, dfs_in_order};
use walrus::{ElementItems, ElementKind, ExportItem, FunctionId, FunctionKind, Module};

use crate::parts::Part;

/// Instructions below which a function may be another's too, which just looks the same.
const SMALL: u64 = 64;

/// The functions of a module by their index, and what uses them.
pub(crate) struct Functions {
    names: Vec<String>,
    /// Whether the function has a body.
    local: Vec<bool>,
    /// In instructions.
    sizes: Vec<u64>,
    /// The functions that each function names.
    uses: Vec<BTreeSet<usize>>,
    exports: Vec<(String, usize)>,
    /// The entries of the table of functions, from its beginning: (slot, function).
    pub(crate) entries: Vec<(u32, usize)>,
    /// The first slot after the last one.
    pub(crate) slots: u32,
}

impl Functions {
    pub(crate) fn of(module: &Module) -> Result<Self, String> {
        let table = module.tables.main_function_table().map_err(|why| why.to_string())?;
        let table = table.ok_or("the module has no table of functions")?;
        let mut entries = Vec::new();
        for element in module.elements.iter() {
            let ElementKind::Active { table: of, offset } = &element.kind else {
                return Err("a passive segment of elements".to_owned());
            };
            match (&element.items, offset) {
                (ElementItems::Functions(ids), walrus::ConstExpr::Value(walrus::ir::Value::I32(first)))
                    if *of == table =>
                {
                    entries.extend((*first as u32..).zip(ids.iter().map(FunctionId::index)));
                }
                _ => return Err("a segment of elements of a kind that is not known".to_owned()),
            }
        }
        let exports = module.exports.iter().filter_map(|export| match export.item {
            ExportItem::Function(id) => Some((export.name.clone(), id.index())),
            _ => None,
        });
        Ok(Self {
            names: module.funcs.iter().map(|function| plain(function.name.as_deref().unwrap_or_default())).collect(),
            local: module.funcs.iter().map(|function| matches!(function.kind, FunctionKind::Local(_))).collect(),
            sizes: module.funcs.iter().map(|function| size(&function.kind)).collect(),
            uses: module.funcs.iter().map(|function| used_by(&function.kind)).collect(),
            exports: exports.chain(module.start.map(|id| (String::new(), id.index()))).collect(),
            entries,
            slots: u32::try_from(module.tables.get(table).initial).unwrap_or(u32::MAX),
        })
    }
}

/// A name without the hashes of the crates in it.
fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        rest = match after.split_once(']') {
            Some((hash, after)) if hash.len() >= 15 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => after,
            _ => {
                plain.push('[');
                after
            }
        };
    }
    plain + rest
}

fn size(kind: &FunctionKind) -> u64 {
    match kind {
        FunctionKind::Local(body) => body.size(),
        _ => 0,
    }
}

fn used_by(kind: &FunctionKind) -> BTreeSet<usize> {
    struct Names(BTreeSet<usize>);
    impl<'a> Visitor<'a> for Names {
        fn visit_function_id(&mut self, id: &FunctionId) {
            self.0.insert(id.index());
        }
    }
    let mut names = Names(BTreeSet::new());
    if let FunctionKind::Local(body) = kind {
        dfs_in_order(&mut names, body, body.entry_block());
    }
    names.0
}

/// Where each function is.
pub(crate) struct Plan {
    pub(crate) functions: Functions,
    /// The part of each function; none is the first module.
    pub(crate) home: Vec<Option<usize>>,
    /// The parts that must be there for each part's code to run, itself among them, as bits.
    pub(crate) masks: Vec<u32>,
    /// The slots through which functions of parts are called.
    pub(crate) slot: BTreeMap<usize, u32>,
    /// One past the last slot.
    pub(crate) slots: u32,
}

impl Plan {
    pub(crate) fn new(functions: Functions, parts: &[Part]) -> Result<Self, String> {
        let masks = masks(parts)?;
        refuse_idle_names(&functions, parts)?;
        let home = homes(&functions, parts, &masks);
        let mut plan = Self { slots: functions.slots, functions, home, masks, slot: BTreeMap::new() };
        plan.refuse_surprises(parts)?;
        plan.give_slots();
        Ok(plan)
    }

    /// What code of `from` calls elsewhere.
    pub(crate) fn called_from(&self, from: Option<usize>) -> BTreeSet<usize> {
        let here = (0..self.home.len()).filter(|&index| self.home[index] == from);
        here.flat_map(|index| &self.functions.uses[index]).copied().filter(|&used| self.home[used] != from).collect()
    }

    /// Whether code of `from` can call a function of a part itself, since the part is there when `from` is.
    pub(crate) fn is_there(&self, from: Option<usize>, part: usize) -> bool {
        from.is_some_and(|from| self.masks[from] & (1 << part) != 0 && part < from)
    }

    /// A part that cannot be loaded ends a call. That must not happen in the midst of Rust code, which is not unwound: so
    /// the call is that of an export, or the code has asked for the part before.
    fn refuse_surprises(&self, parts: &[Part]) -> Result<(), String> {
        let mut wrong = String::new();
        for from in std::iter::once(None).chain((0..parts.len()).map(Some)) {
            for used in self.called_from(from) {
                let Some(part) = self.home[used] else { continue };
                let name = &self.functions.names[used];
                let is_there = from.is_some_and(|from| self.masks[from] & (1 << part) != 0);
                if !is_there && !parts[part].gates.iter().any(|gate| name.contains(gate)) {
                    let from = from.map_or("the first module", |from| parts[from].name);
                    wrong += &format!("{from} calls {name} of {}\n", parts[part].name);
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn give_slots(&mut self) {
        for &(slot, function) in &self.functions.entries {
            if self.home[function].is_some() {
                self.slot.entry(function).or_insert(slot);
            }
        }
        let mut outside: BTreeSet<usize> = self.functions.exports.iter().map(|(_, function)| *function).collect();
        for from in std::iter::once(None).chain((0..self.masks.len()).map(Some)) {
            let called = self.called_from(from);
            outside
                .extend(called.iter().filter(|&&used| self.home[used].is_some_and(|part| !self.is_there(from, part))));
        }
        for function in outside {
            if self.home[function].is_some() && !self.slot.contains_key(&function) {
                self.slot.insert(function, self.slots);
                self.slots += 1;
            }
        }
    }
}

/// An export that is not there was renamed, and would end up where it does not belong. Of other names that cannot be told:
/// what is called in one place may be compiled into it.
fn refuse_idle_names(functions: &Functions, parts: &[Part]) -> Result<(), String> {
    for part in parts {
        let there = |export: &str| functions.exports.iter().any(|(name, _)| is_of(name, export));
        if let Some(idle) = part.exports.iter().find(|export| !there(export)) {
            return Err(format!("there is no export {idle}, which is to be in {}", part.name));
        }
    }
    Ok(())
}

/// What must be there for each part.
fn masks(parts: &[Part]) -> Result<Vec<u32>, String> {
    let mut masks: Vec<u32> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let mut mask = 1 << index;
        for need in part.needs {
            let needed = parts[..index].iter().position(|other| other.name == *need);
            mask |= masks[needed.ok_or_else(|| format!("{} comes before {need}", part.name))?];
        }
        masks.push(mask);
    }
    Ok(masks)
}

/// The part of each function: the one that names it, or else the one that alone reaches it.
fn homes(functions: &Functions, parts: &[Part], masks: &[u32]) -> Vec<Option<usize>> {
    // Of several parts the last, which knows the others.
    let by_name = |words: fn(&Part) -> &[&str], function: usize| {
        let name = &functions.names[function];
        parts.iter().rposition(|part| words(part).iter().any(|word| name.contains(word)))
    };
    let mut named: Vec<Option<usize>> = (0..functions.names.len())
        .map(|function| by_name(|part| part.gates, function).filter(|_| functions.local[function]))
        .collect();
    for (name, function) in &functions.exports {
        let part = parts.iter().rposition(|part| part.exports.iter().any(|&export| is_of(name, export)));
        named[*function] = part.or(named[*function]);
    }
    // Entries of the table are of the part that they are named after, unless others call them too: functions that turned
    // out the same are one, by the name of any.
    let entries: BTreeSet<usize> = functions.entries.iter().map(|(_, function)| *function).collect();
    let large = |function: usize| functions.sizes[function] >= SMALL;
    let own =
        |function: usize| named[function].or_else(|| by_name(|part| part.code, function).filter(|_| large(function)));
    let roots = functions.exports.iter().map(|(_, function)| *function).filter(|&function| named[function].is_none());
    let roots = roots.chain(entries.iter().copied().filter(|&function| own(function).is_none()));
    let first = reach(functions, &named, roots);
    let named: Vec<Option<usize>> =
        (0..named.len())
            .map(|function| {
                if entries.contains(&function) && !first.contains(&function) { own(function) } else { named[function] }
            })
            .collect();
    let mut by = vec![0u32; named.len()];
    for part in 0..parts.len() {
        let own = (0..named.len()).filter(|&function| named[function] == Some(part));
        for function in reach(functions, &named, own) {
            by[function] |= 1 << part;
        }
    }
    let home = |function: usize| {
        if named[function].is_some() || first.contains(&function) || !functions.local[function] {
            return named[function];
        }
        // The last part that all which reach it need.
        let all = (0..parts.len()).filter(|part| by[function] & (1 << part) != 0);
        let common = all.map(|part| masks[part]).reduce(|common, mask| common & mask)?;
        common.checked_ilog2().map(|part| part as usize)
    };
    (0..named.len()).map(home).collect()
}

/// Whether an export is one that a part names: by its name, or by the beginning of it, which ends in `_`.
fn is_of(name: &str, export: &str) -> bool {
    name == export || (export.ends_with('_') && name.starts_with(export))
}

/// What code reaches without entering what is another's by name.
fn reach(functions: &Functions, named: &[Option<usize>], roots: impl Iterator<Item = usize>) -> BTreeSet<usize> {
    let mut due: Vec<usize> = roots.collect();
    let mut reached: BTreeSet<usize> = due.iter().copied().collect();
    while let Some(function) = due.pop() {
        for &used in &functions.uses[function] {
            if named[used].is_none() && reached.insert(used) {
                due.push(used);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use walrus::{FunctionBuilder, RefType};

    use super::*;

    const PARTS: [Part; 3] = [
        Part { name: "base", needs: &[], exports: &[], code: &[], gates: &[], constants: &[] },
        Part { name: "one", needs: &["base"], exports: &["one", "one_"], code: &[], gates: &["gate"], constants: &[] },
        Part { name: "two", needs: &["base"], exports: &["two"], code: &[], gates: &[], constants: &[] },
    ];

    // A module of functions with the functions that each calls, which come before it; those beginning with `!` are exported.
    fn functions(list: &[(&str, &[usize])]) -> Functions {
        let mut module = Module::default();
        module.tables.add_local(false, 4, None, RefType::FUNCREF);
        let mut ids = Vec::new();
        for (name, calls) in list {
            let mut builder = FunctionBuilder::new(&mut module.types, &[], &[]);
            for &call in *calls {
                builder.func_body().call(ids[call]);
            }
            let id = builder.finish(Vec::new(), &mut module.funcs);
            module.funcs.get_mut(id).name = Some(name.trim_start_matches('!').to_owned());
            if let Some(name) = name.strip_prefix('!') {
                module.exports.add(name, id);
            }
            ids.push(id);
        }
        Functions::of(&module).unwrap()
    }

    #[test]
    fn what_only_a_part_reaches_moves_and_what_parts_share_goes_where_all_can_call_it() {
        let list: [(&str, &[usize]); 9] = [
            ("ones[0123456789abcdef]::own", &[]),
            ("shared", &[]),
            ("everybody's", &[]),
            ("a gate[1]", &[2]),
            ("twos", &[2]),
            ("!one", &[0, 1, 2]),
            ("!one_more", &[]),
            ("!two", &[1, 4]),
            ("!other", &[2, 3]),
        ];
        let plan = Plan::new(functions(&list), &PARTS).unwrap();
        assert_eq!(plan.functions.names[0], "ones::own");
        assert_eq!(plan.functions.names[3], "a gate[1]");
        let (base, one, two) = (Some(0), Some(1), Some(2));
        assert_eq!(plan.home, [one, base, None, one, two, one, one, two, None]);
        assert_eq!(plan.masks, [0b001, 0b011, 0b101]);
        // Those that are called from outside: the exports and the gate. What is shared is called as it is.
        assert_eq!(plan.slot, BTreeMap::from([(3, 4), (5, 5), (6, 6), (7, 7)]));
        assert_eq!(plan.slots, 8);
    }

    #[test]
    fn a_call_into_a_part_from_the_midst_of_other_code_is_refused() {
        let list: [(&str, &[usize]); 5] =
            [("gate", &[]), ("!one", &[]), ("!one_more", &[]), ("!two", &[]), ("!other", &[3])];
        let Err(why) = Plan::new(functions(&list), &PARTS) else { panic!("it was taken") };
        assert_eq!(why, "the first module calls two of two\n");
    }

    #[test]
    fn exports_that_are_not_there_are_refused() {
        let list: [(&str, &[usize]); 4] = [("gate", &[]), ("!one", &[]), ("!one_more", &[]), ("!too", &[])];
        let Err(why) = Plan::new(functions(&list), &PARTS) else { panic!("it was taken") };
        assert_eq!(why, "there is no export two, which is to be in two");
        let late = [Part { name: "late", needs: &["later"], exports: &[], code: &[], gates: &[], constants: &[] }];
        assert_eq!(masks(&late).unwrap_err(), "late comes before later");
    }
}
