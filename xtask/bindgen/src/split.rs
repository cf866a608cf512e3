//! Splits a finished module into a first one and parts that are loaded when something in them is first called.
//!
//! Code moves, and the constants that are named. The parts share memory, table and stack with the first module, which exports
//! them; constants stay at their addresses, and are there when their part is. What is called
//! from outside its part has a slot in the table: in the first module a stub stands for it, which makes sure that the
//! part is there (`load`, an import) and calls through the slot. A part fills its slots when it is instantiated.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use walrus::ir::BinaryOp;
use walrus::{
    ConstExpr, ElementItems, ElementKind, FunctionBuilder, FunctionId, FunctionKind, GlobalKind, ImportKind,
    ImportedFunction, MemoryId, Module, TableId, ValType, ir::Value, passes,
};

use crate::constants::{Constants, Taken};
use crate::parts::Part;
use crate::plan::{Functions, Plan};

/// The module of which the import for loading is named `load`.
pub(crate) const LOADER: &str = "./qcowkit_parts.js";
/// What keeps that import there until then.
pub(crate) const LOAD: &str = "__load_parts";

/// A module in pieces.
pub(crate) struct Pieces {
    pub(crate) first: Vec<u8>,
    /// The parts in their order, each with the parts that are loaded for it, itself among them, as bits.
    pub(crate) parts: Vec<(Vec<u8>, u32)>,
    /// The name of what the parts import from. It is that of this build: a part of another one finds nothing.
    pub(crate) pool: String,
}

/// Splits a module.
pub(crate) fn split(bytes: &[u8], parts: &[Part], constants: &Constants) -> Result<Pieces, String> {
    let plan = Plan::new(Functions::of(&parse(bytes)?)?, parts)?;
    let names = Names::of(&plan);
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let pool = format!("{:08x}", hasher.finish() as u32);
    let mut whole = parse(bytes)?;
    let constants = constants.take(&mut whole)?;
    let first = first(whole, &plan, &names)?;
    let parts = plan.masks.iter().enumerate().map(|(part, &mask)| {
        let module = Piece { module: parse(bytes)?, pool: &pool };
        Ok((module.part(&plan, &names, part, &constants)?, mask))
    });
    let parts = parts.collect::<Result<_, String>>()?;
    Ok(Pieces { first, parts, pool })
}

fn parse(bytes: &[u8]) -> Result<Module, String> {
    Module::from_buffer(bytes).map_err(|why| format!("{why:#}"))
}

/// Short names for what crosses, other than those that are there already (which are long).
struct Names(BTreeMap<Crossing, String>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Crossing {
    /// A function as its home exports it.
    Function(usize),
    /// The stub in the first module for a function of a part.
    Stub(usize),
}

impl Names {
    fn of(plan: &Plan) -> Self {
        let mut crossings = BTreeSet::new();
        for from in (0..plan.masks.len()).map(Some) {
            crossings.extend(plan.called_from(from).into_iter().map(|used| crossing(plan, from, used)));
        }
        Self(crossings.into_iter().enumerate().map(|(at, crossing)| (crossing, short(at))).collect())
    }
}

fn crossing(plan: &Plan, from: Option<usize>, used: usize) -> Crossing {
    match plan.home[used] {
        Some(part) if !plan.is_there(from, part) => Crossing::Stub(used),
        _ => Crossing::Function(used),
    }
}

/// A number in letters.
fn short(mut number: usize) -> String {
    const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    let mut name = String::new();
    loop {
        name.insert(0, char::from(LETTERS[number % 26]));
        if number < 26 {
            return name;
        }
        number = number / 26 - 1;
    }
}

/// The ids of a module's functions, by index.
fn ids(module: &Module) -> Vec<FunctionId> {
    module.funcs.iter().map(|function| function.id()).collect()
}

fn first(mut module: Module, plan: &Plan, names: &Names) -> Result<Vec<u8>, String> {
    let ids = ids(&module);
    let table = function_table(&module)?;
    let load = module.imports.get_func(LOADER, "load").map_err(|why| why.to_string())?;
    module.exports.remove(LOAD).map_err(|why| why.to_string())?;
    let shared = shared(&module);
    let ensure = ensure(&mut module, load);
    for (&function, &slot) in &plan.slot {
        let part = plan.home[function].unwrap_or_default();
        stub(&mut module, ids[function], table, slot, (ensure, plan.masks[part]));
    }
    let slots = module.tables.get_mut(table);
    slots.initial = u64::from(plan.slots);
    slots.maximum = slots.maximum.map(|_| u64::from(plan.slots));
    for (crossing, name) in &names.0 {
        match *crossing {
            Crossing::Stub(function) => module.exports.add(name, ids[function]),
            Crossing::Function(function) if plan.home[function].is_none() => module.exports.add(name, ids[function]),
            Crossing::Function(_) => continue,
        };
    }
    for (name, item) in shared {
        match item {
            Shared::Memory(id) => module.exports.add(&name, id),
            Shared::Table(id) => module.exports.add(&name, id),
            Shared::Global(id) => module.exports.add(&name, id),
        };
    }
    passes::gc::run(&mut module);
    Ok(module.emit_wasm())
}

fn function_table(module: &Module) -> Result<TableId, String> {
    let table = module.tables.main_function_table().map_err(|why| why.to_string())?;
    table.ok_or_else(|| "the module has no table of functions".to_owned())
}

/// The function that has parts loaded unless they are there. It takes them as bits.
fn ensure(module: &mut Module, load: FunctionId) -> FunctionId {
    let there = module.globals.add_local(ValType::I32, true, false, ConstExpr::Value(Value::I32(0)));
    let mut function = FunctionBuilder::new(&mut module.types, &[ValType::I32], &[]);
    let parts = module.locals.add(ValType::I32);
    let mut body = function.func_body();
    body.global_get(there).local_get(parts).binop(BinaryOp::I32And).local_get(parts).binop(BinaryOp::I32Ne);
    body.if_else(
        None,
        |missing| {
            missing.local_get(parts).call(load);
            missing.global_get(there).local_get(parts).binop(BinaryOp::I32Or).global_set(there);
        },
        |_| {},
    );
    function.finish(vec![parts], &mut module.funcs)
}

/// Puts in place of a function one that calls it through its slot.
fn stub(module: &mut Module, id: FunctionId, table: TableId, slot: u32, (ensure, parts): (FunctionId, u32)) {
    let ty = module.funcs.get(id).ty();
    let (takes, gives) = (module.types.params(ty).to_vec(), module.types.results(ty).to_vec());
    let mut function = FunctionBuilder::new(&mut module.types, &takes, &gives);
    let arguments: Vec<_> = takes.iter().map(|&of| module.locals.add(of)).collect();
    let mut body = function.func_body();
    body.i32_const(parts as i32).call(ensure);
    for &argument in &arguments {
        body.local_get(argument);
    }
    body.i32_const(slot as i32).call_indirect(ty, table);
    module.funcs.get_mut(id).kind = FunctionKind::Local(function.local_func(arguments));
}

/// What all modules have in common beside functions.
enum Shared {
    Memory(MemoryId),
    Table(TableId),
    Global(walrus::GlobalId),
}

fn shared(module: &Module) -> Vec<(String, Shared)> {
    let memories = module.memories.iter().enumerate().map(|(at, found)| (format!("M{at}"), Shared::Memory(found.id())));
    let tables = module.tables.iter().enumerate().map(|(at, found)| (format!("T{at}"), Shared::Table(found.id())));
    let globals = module.globals.iter().enumerate().filter(|(_, found)| found.mutable);
    let globals = globals.map(|(at, found)| (format!("G{at}"), Shared::Global(found.id())));
    memories.chain(tables).chain(globals).collect()
}

/// A module that becomes a part.
struct Piece<'a> {
    module: Module,
    pool: &'a str,
}

impl Piece<'_> {
    fn part(mut self, plan: &Plan, names: &Names, part: usize, constants: &[Taken]) -> Result<Vec<u8>, String> {
        let ids = ids(&self.module);
        self.clear();
        for (name, item) in shared(&self.module) {
            self.import(&name, item);
        }
        for used in plan.called_from(Some(part)) {
            self.import_function(ids[used], &names.0[&crossing(plan, Some(part), used)]);
        }
        for (crossing, name) in &names.0 {
            if let Crossing::Function(function) = *crossing
                && plan.home[function] == Some(part)
            {
                self.module.exports.add(name, ids[function]);
            }
        }
        fill_slots(&mut self.module, plan, part, &ids)?;
        constants.iter().filter(|taken| taken.part == part).try_for_each(|taken| taken.put(&mut self.module))?;
        passes::gc::run(&mut self.module);
        Ok(self.module.emit_wasm())
    }

    /// Takes away what the first module alone has: exports, data, the entries of the table, the beginning.
    fn clear(&mut self) {
        let module = &mut self.module;
        let exports: Vec<_> = module.exports.iter().map(|export| export.id()).collect();
        exports.into_iter().for_each(|id| module.exports.delete(id));
        let elements: Vec<_> = module.elements.iter().map(|element| element.id()).collect();
        module.tables.iter_mut().for_each(|table| table.elem_segments.clear());
        elements.into_iter().for_each(|id| module.elements.delete(id));
        let data: Vec<_> = module.data.iter().map(|data| data.id()).collect();
        module.memories.iter_mut().for_each(|memory| memory.data_segments.clear());
        data.into_iter().for_each(|id| module.data.delete(id));
        module.start = None;
    }

    fn import(&mut self, name: &str, item: Shared) {
        let Self { module, pool } = self;
        match item {
            Shared::Memory(id) => {
                let import = module.imports.add(pool, name, id);
                module.memories.get_mut(id).import = Some(import);
            }
            Shared::Table(id) => {
                let import = module.imports.add(pool, name, id);
                let table = module.tables.get_mut(id);
                // As large as the first module makes it.
                (table.import, table.init, table.maximum) = (Some(import), None, None);
            }
            Shared::Global(id) => {
                let import = module.imports.add(pool, name, id);
                module.globals.get_mut(id).kind = GlobalKind::Import(import);
            }
        }
    }

    fn import_function(&mut self, id: FunctionId, name: &str) {
        let Self { module, pool } = self;
        let ty = module.funcs.get(id).ty();
        if let FunctionKind::Import(of) = &module.funcs.get(id).kind {
            let found = module.imports.get_mut(of.import);
            (found.module, found.name) = (String::from(*pool), name.to_owned());
            return;
        }
        let import = module.imports.add(pool, name, ImportKind::Function(id));
        module.funcs.get_mut(id).kind = FunctionKind::Import(ImportedFunction { import, ty });
    }
}

/// A segment for each run of slots of the part.
fn fill_slots(module: &mut Module, plan: &Plan, part: usize, ids: &[FunctionId]) -> Result<(), String> {
    let table = function_table(module)?;
    let mut own: BTreeMap<u32, usize> = plan.slot.iter().map(|(&function, &slot)| (slot, function)).collect();
    own.extend(plan.functions.entries.iter().copied());
    own.retain(|_, function| plan.home[*function] == Some(part));
    let mut runs: Vec<(u32, Vec<FunctionId>)> = Vec::new();
    for (slot, function) in own {
        match runs.last_mut() {
            Some((first, run)) if *first as usize + run.len() == slot as usize => run.push(ids[function]),
            _ => runs.push((slot, vec![ids[function]])),
        }
    }
    for (first, run) in runs {
        let offset = ConstExpr::Value(Value::I32(first as i32));
        let id = module.elements.add(ElementKind::Active { table, offset }, ElementItems::Functions(run));
        module.tables.get_mut(table).elem_segments.insert(id);
    }
    Ok(())
}
